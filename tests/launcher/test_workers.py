"""Starting several processes: their exit code, their signals, the end of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triax.launcher.cluster.workers import Failure, exit_code

NUM_PROCESSES = 2
LAUNCH = """
import sys
from triax.launcher.cluster.workers import launch
if __name__ == "__main__":
    sys.exit(launch(2, "worker", sys.argv[1:]))
"""
WORKER = r"""
import os, signal, sys, time
from triax.common.errors import UserError
from triax.launcher.cluster.workers import let_signals_through
from triax.launcher.cluster.launchers import discover

def say_hello():
    # In one write: both workers share the pipe.
    os.write(1, f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\n".encode())

def wait_for_signal():
    received = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: received.append(number))
    say_hello()
    while not received:
        time.sleep(0.02)
    return received[0]

let_signals_through()
rank, (action, *codes) = discover().rank, sys.argv[1:]
if action == "exit":
    sys.exit(int(codes[rank]))
elif action == "one-exits":
    if rank == 1:
        sys.exit(int(codes[0]))
    time.sleep(300)
elif action == "sleep":
    say_hello()
    time.sleep(300)
elif action == "save":
    number = wait_for_signal()
    time.sleep(0.3 * rank)
    sys.exit(75 if number != signal.SIGUSR1 else 3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    return tmp_path


@contextmanager
def launched(folder: Path, *argv: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher with its workers; whatever happens, it doesn't outlive the block."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [sys.executable, "launch.py", *argv],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(folder)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            process.wait(40)
        process.communicate()


def first_lines(process: subprocess.Popen[str]) -> list[list[int]]:
    assert process.stdout is not None
    return [[int(word) for word in process.stdout.readline().split()] for _ in range(NUM_PROCESSES)]


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("exit", "0", "0"), 0),
        (("exit", "75", "75"), 75),
        (("one-exits", "2"), 2),
    ],
)
def test_the_workers_exit_code_is_returned_and_nothing_else_is_said(
    folder: Path, argv: tuple[str, ...], code: int
) -> None:
    with launched(folder, *argv) as process:
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (code, "", "")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGUSR1, 3)]
)
def test_signals_are_the_workers_to_answer(folder: Path, number: signal.Signals, code: int) -> None:
    with launched(folder, "save", OMP_NUM_THREADS="3") as process:
        assert [threads for _, threads in first_lines(process)] == [3, 3]
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (code, "")


def test_a_killed_worker_ends_the_others_and_is_named(folder: Path) -> None:
    with launched(folder, "sleep") as process:
        (first, threads), (second, _) = first_lines(process)
        assert threads == max(1, len(os.sched_getaffinity(0)) // NUM_PROCESSES)
        os.kill(first, signal.SIGKILL)
        _, error = process.communicate(timeout=25)
    assert process.returncode == 128 + signal.SIGKILL
    assert "was ended by SIGKILL" in error
    assert error.count("\n") == 1
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([], 0),
        ([(0, 1, 0), (1, 2, 0)], 2),
        ([(0, -15, 0), (1, 75, 0)], 75),
        ([(0, 1, 0), (1, -9, 0), (2, -15, 0)], 137),
        ([(0, 3, 0), (1, -9, 30)], 3),
        ([(0, 1, 0), (1, -15, 0)], 1),
        ([(0, -15, 0), (1, -15, 0)], 143),
    ],
)
def test_the_cause_is_told_from_what_followed(
    failures: list[tuple[int, int, float]], code: int
) -> None:
    assert exit_code([Failure(*failure) for failure in failures]) == code
