"""`triax watch`: who is answered, what a browser sees of a run that goes on, the terminal."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser import Browser, find_browser
from recorded import HOSTILE, record_run
from rich.console import Console

from triax.launcher.cli import main
from triax.launcher.report.records import read_run
from triax.launcher.report.serving import LOOPBACK, PageServer
from triax.launcher.report.terminal import draw, sparkline


@contextmanager
def served(run: Path, seconds: float) -> Iterator[PageServer]:
    with PageServer([run], LOOPBACK, 0, seconds) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def status_of(request: str | Request) -> int:
    try:
        with urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_only_the_token_is_answered_and_only_reading(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run", 800)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with served(run, 60) as server:
        address, token = server.url.split("?token=")
        assert address.startswith("http://127.0.0.1:")
        assert status_of(server.url) == 200
        assert status_of(f"{address}data.json?token={token}") == 200
        for path in ("", "data.json", "?token=", "?token=wrong", f"?token={token[:-1]}"):
            assert status_of(address + path) == 403
        for path in ("../config.toml", "config.toml", "logs/"):
            assert status_of(f"{address}{path}?token={token}") == 404
        for method in ("POST", "PUT", "DELETE"):
            assert status_of(Request(server.url, data=b"", method=method)) == 501
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
def test_a_browser_sees_new_steps(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run", 800)
    with served(run, 0.3) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        assert "step 800" in browser.ask("document.getElementById('main').textContent")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 801, "tokens": 801 * 4096, "loss": 3.0}) + "\n")
        browser.wait_for("document.getElementById('main').textContent.includes('step 801')")
        assert browser.complaints == []
        assert all(url.startswith(server.url.split("?")[0]) for url in browser.requests)


def test_the_terminal_shows_a_run(tmp_path: Path) -> None:
    run = record_run(tmp_path / HOSTILE.replace("/", "_"), 800)
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=False)
    console.print(draw(read_run(run), 1000, 80, 40))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("time left", "speed now", "loss", "checkpoint", "█", "pipeline 0"):
        assert part in text


def test_a_sparkline_keeps_its_shape() -> None:
    assert sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([1.0, np.nan, 1.0]), 80) == "▁ ▁"
    assert sparkline(np.array([np.nan]), 80) == ""


def test_mistakes_end_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record_run(tmp_path / "run", 800)
    assert main(["watch", str(tmp_path)]) == 2
    assert main(["watch", str(run), "--port", "70000"]) == 2
    assert main(["watch", str(run), "--terminal"]) == 2
    assert "needs a terminal" in capsys.readouterr().err
