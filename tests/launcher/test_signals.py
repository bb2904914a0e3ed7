"""A job that is asked to stop saves, says that it may go on, and goes on bitwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import curve, finish, read_rows, start, train

BUDGET = ("--budget.tokens=16K", "--checkpoint.every=1000 steps", "--eval.every=none")


@pytest.mark.parametrize(
    ("num_processes", "numbers"),
    [(1, [signal.SIGTERM, signal.SIGHUP]), (2, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])],
)
def test_a_stopped_job_saves_and_goes_on(
    job: Path, num_processes: int, numbers: list[signal.Signals]
) -> None:
    run, reached = job / "runs/job", 0
    for number in numbers:

        def is_time(step: int = reached + 4) -> bool:
            return len(read_rows(run)) >= step

        stopped = train(job, *BUDGET, num_processes=num_processes, signal_when=(number, is_time))
        assert stopped.code == 75, stopped.text
        assert "Traceback" not in stopped.text
        assert reached == 0 or f"going on after step {reached} " in stopped.out
        assert f": stopped by {number.name}\n" in stopped.out
        processes = f" --nproc-per-node {num_processes}" if num_processes > 1 else ""
        assert f"to resume    triax train runs/job/config.toml{processes}\n" in stopped.out
        reached = len(read_rows(run))
        ending = json.loads((run / "exit.json").read_text())
        assert (ending["code"], ending["step"]) == (75, reached)
    for overrides in ((), ("--run.name=straight",)):
        ended = train(job, *BUDGET, *overrides, num_processes=num_processes)
        assert ended.code == 0, ended.text
    assert curve(run) == curve(job / "runs/straight")


def test_ctrl_c_on_the_command_line(job: Path) -> None:
    process = start(job, "triax", "train", "run.toml", "--budget.tokens=80K")
    wait_until(process, lambda: len(read_rows(job / "runs/job")) >= 3)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.error) == (75, ""), ended.text
    assert ": stopped by SIGINT\n" in ended.out
    assert "SIGINT: the run stops and saves after this step; Ctrl-C again quits" in ended.out


def test_a_run_outlives_its_reader_and_its_terminal(job: Path) -> None:
    """As `nohup triax train ... | head -1` has it, and a closed terminal."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(job, "triax", "train", "run.toml", *BUDGET, "--nproc-per-node", "2")
    finally:
        signal.signal(signal.SIGHUP, former)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    wait_until(process, lambda: len(read_rows(job / "runs/job")) >= 3)
    for pid in (process.pid, *map(int, workers_of(process.pid))):
        os.kill(pid, signal.SIGHUP)
    assert process.wait(90) == 0
    assert len(read_rows(job / "runs/job")) == 16_000 // 256


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_while_torch_is_imported_shows_no_traceback(job: Path) -> None:
    process = start(job, "triax", "train", "run.toml", "--budget.tokens=80K")
    # Once the worker's own module name is its command line, it is importing.
    wait_until(process, lambda: "triax.launcher.train" in command_line(process.pid))
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.error) == (130, "triax: error: interrupted\n"), ended.text


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_while_several_processes_import_shows_no_traceback(job: Path) -> None:
    process = start(job, "triax", "train", "run.toml", "--nproc-per-node", "2")
    wait_until(process, lambda: len(workers_of(process.pid)) == 2)
    os.killpg(process.pid, signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130, ended.text
    assert "Traceback" not in ended.text and "interrupted" in ended.error


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_request_to_save_that_comes_too_early_is_kept(job: Path) -> None:
    """Batch systems send it by the clock, also to a job that only starts."""
    process = start(job, "triax", "train", "run.toml", "--budget.tokens=80K", "--nproc-per-node=2")
    wait_until(process, lambda: len(workers_of(process.pid)) == 2)
    process.send_signal(signal.SIGUSR1)
    ended = finish(process)
    assert ended.code == 75, ended.text
    assert list((job / "runs/job/checkpoints").glob("step-*")), "there is what was asked for"


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Or until the process has ended; it needs the cores itself."""
    while process.poll() is None and not condition():
        time.sleep(0.01)


def workers_of(pid: int) -> list[str]:
    """The child processes that have begun to run their own module."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if "triax.launcher.train" in command_line(int(child))]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
