"""`triax eval --tasks` over several processes: one process's figures, and no half of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness_tasks import TASKS, export_random, make_tasks
from jobs import finish, start

pytest.importorskip("lm_eval", reason='needs the lm-eval package (pip install "triax[eval]")')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, tasks, and in `many/` the same with questions for minutes."""
    root = tmp_path_factory.mktemp("tasks")
    make_tasks(root, num_rows=7)
    export_random(root)
    (root / "many").mkdir()
    make_tasks(root / "many", num_rows=6000)
    return root


def evaluate(folder: Path, *options: str, program: tuple[str, ...] = ("triax",)) -> Any:
    output = folder / "results.json"
    command = ["eval", "hf", "--include-path", "own", "--tasks", ",".join(TASKS)]
    ended = finish(start(folder, *program, *command, "--output", str(output), *options), 300)
    assert ended.code == 0, ended.text
    assert ended.out.count("acc_norm") == 1, "one process talks"
    found = json.loads(output.read_text())
    output.unlink()
    return found["results"]


def test_two_processes_find_what_one_does(folder: Path) -> None:
    """Seven questions, so that shares are unequal; by ours and by torch's launcher."""
    alone = evaluate(folder)
    torchrun = ("torchrun", "--nproc-per-node", "2", "-m", "triax.launcher.cli")
    for found in (
        evaluate(folder, "--nproc-per-node", "2"),
        evaluate(folder, "--nproc-per-node", "2", "--shard"),
        evaluate(folder, program=torchrun),
    ):
        for task, figures in alone.items():
            for name, value in figures.items():
                if isinstance(value, float):
                    value = pytest.approx(value, rel=1e-5)
                assert found[task][name] == value, (task, name)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The workers that can be connected to each other."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if _has_sockets(pid)]


def _has_sockets(pid: int) -> bool:
    try:
        opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return sum(name.startswith("socket:") for name in opened) > 1


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "whom", "code", "words"),
    [
        (signal.SIGKILL, "rank", 128 + signal.SIGKILL, "was ended by SIGKILL"),
        (signal.SIGKILL, "launcher", -signal.SIGKILL, ""),
        (signal.SIGINT, "launcher", 130, "interrupted"),
    ],
)
def test_a_killed_evaluation_leaves_nothing(
    folder: Path, number: signal.Signals, whom: str, code: int, words: str
) -> None:
    """Neither processes nor half a file of results."""
    process = start(
        folder, "triax", "eval", "hf", "--include-path", "many/own", "--tasks", "choose,write",
        "--output", "killed.json", "--nproc-per-node", "2",
    )  # fmt: skip
    end = time.monotonic() + 200
    while len(workers := children(process)) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    time.sleep(2)
    os.kill(workers[1] if whom == "rank" else process.pid, number)
    ended = finish(process, 60)
    assert ended.code == code and words in ended.error, ended.text
    assert "Traceback" not in ended.error, ended.error
    for _ in range(300):
        if not any(map(lives, workers)):
            break
        time.sleep(0.1)
    assert not any(map(lives, workers)), "a process goes on"
    assert not list(folder.glob("*killed.json*"))
