"""The page about runs: what it holds, how large it is, and that it works in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_browser
from recorded import HOSTILE, SPIKE_STEP, record_run

from triax.launcher.cli import main
from triax.launcher.report.buckets import bucket_starts, thin
from triax.launcher.report.build import build_page, build_payload
from triax.launcher.report.records import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_run(tmp_path_factory.mktemp("runs") / "recorded", 4000)


def test_a_spike_of_one_step_is_in_its_bucket() -> None:
    column = np.zeros(100_000)
    column[4321], column[7] = 50.0, np.nan
    starts = bucket_starts(len(column), 2000)
    thinned = thin(column, starts)
    assert len(starts) == 2000
    assert thinned.high.max() == 50 and thinned.low.min() == 0
    assert np.isfinite(thinned.mean).all()


def test_a_page_has_a_size_that_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """2,000 buckets are full at 4,000 steps and at a million."""
    page = build_page([record_run(tmp_path / "long", 8_000)])
    assert len(page.encode()) < 1_000_000
    assert ",99," in page, "its spike is gone"


def test_every_figure_and_event_is_told(run: Path) -> None:
    payload = build_payload([run])
    (told,) = payload["runs"]
    names = {figure["name"] for figure in payload["figures"]}
    assert {"loss", "lr", "grad_norm", "mfu", "expert_load_max", "my_new_figure"} <= names
    assert {one["name"] for one in payload["evaluated"]} == {"perplexity", "tasks/piqa/acc"}
    assert told["limits"]["grad_norm"] == 1.0 and told["limits"]["loss_score"] > 1
    assert {mark["kind"] for mark in told["marks"]} == {"start", "checkpoint", "skipped_update"}
    assert SPIKE_STEP in [mark["step"] for mark in told["marks"]]
    assert [len(layers["layers"]) for layers in told["layers"]] == [2]
    assert all(axis[-1] for axis in told["axes"].values()), "an axis has no values"
    assert dict(told["environment"])["python"] == "3.11"
    assert told["layout"] and told["forecast"] and told["samples"]


def test_configs_are_held_against_defaults_and_each_other(tmp_path: Path, run: Path) -> None:
    other = record_run(tmp_path / "other", 50, lr=5e-3)
    rows = {row["path"]: row for row in build_payload([run, other])["config"]}
    assert rows["optimizer.lr"]["differs"] and rows["optimizer.lr"]["changed"]
    assert rows["optimizer.lr"]["values"] == ["0.001", "0.005"]
    assert rows["optimizer.lr"]["default"] == "0.0003"
    assert not rows["batch.global_batch_size"]["differs"]


def test_records_in_any_state_are_read(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "torn", 30)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 31, "loss": NaN}\n{"step": "x"}\n\xff\xfe{"step": 3')
    (folder / "config.toml").write_text("= not TOML")
    (folder / "events.jsonl").write_text(
        '{"event": "start", "layout": 5, "step": [], "environment": 3}\n{"event": "evaluation"}\n'
    )
    record = read_run(folder)
    assert record.num_rows == 31 and record.num_unreadable == 2
    build_page([folder])


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_command_writes_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
def test_a_browser_draws_the_page_alone(tmp_path: Path, run: Path) -> None:
    """Every panel, hover, keys, a phone's width, print; no request, no complaint, no harm by
    names."""
    hostile = record_run(tmp_path / HOSTILE.replace("/", "_"), 300, lr=5e-3)
    page = tmp_path / "page.html"
    page.write_text(build_page([run, hostile]))
    with Browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri())
        _look_at(browser)
        browser.open(f"{page.as_uri()}?dark", dark=True, width=390, height=800)
        assert browser.ask("document.documentElement.scrollWidth") == 390
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert browser.print().startswith(b"%PDF")
        assert browser.complaints == []
        assert {url.split("?")[0] for url in browser.requests} == {page.as_uri()}


def _look_at(browser: Browser) -> None:
    drawn = browser.ask("document.querySelectorAll('.plot canvas').length")
    assert drawn == browser.ask("document.querySelectorAll('.plot').length") >= 12
    assert drawn == int(browser.ask("document.documentElement.dataset.drawn"))
    headings = browser.ask("[...document.querySelectorAll('h2')].map(h => h.textContent).join()")
    for heading in ("Loss", "Updates", "Experts", "Evaluation", "Config", "Environment", "Events"):
        assert heading in headings
    assert (
        browser.ask("document.querySelectorAll('main b, main i, main img, main script').length")
        == 0
    )
    box = json.loads(
        browser.ask("JSON.stringify(document.querySelector('.u-over').getBoundingClientRect())")
    )
    browser.move_mouse(box["x"] + box["width"] / 2, box["y"] + 40)
    readout: Any = browser.wait_for("document.querySelector('.readout').textContent")
    assert "smoothed" in readout and "step" in readout
    browser.ask("document.querySelector('.plot').focus()")
    browser.press("Home")
    first = browser.ask("document.querySelector('.readout').textContent")
    browser.press("ArrowRight")
    assert first != browser.ask("document.querySelector('.readout').textContent") != readout
