"""Start a run's processes on this machine, and report how they ended. Imports no torch.

They meet in a file of a folder that only this user can enter, so no port of theirs is there for
others to write to. Their exit code is returned, only they speak, and a signal is theirs to answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from triax.common.errors import ExitCode
from triax.launcher.cluster.environment import worker_variables
from triax.launcher.terminal.messages import print_error

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_OF_ONE_FAILURE = 5
"""Workers that end this much later than the first were ended by it, or by us."""
_SECONDS_TO_END = 30
"""How long workers have after SIGTERM, when one of them has failed."""
_POLL_SECONDS = 0.05
_MEANINGFUL = (ExitCode.BAD_INPUT, ExitCode.STOPPED_BY_GUARD, ExitCode.PREEMPTED)


@dataclass(frozen=True)
class Failure:
    """How one worker ended, other than well."""

    rank: int
    exit_code: int
    """Minus the signal's number if a signal ended it, as in `subprocess`."""
    time: float
    """Seconds since some moment, the same for all."""


class _Workers:
    """The processes of a launch; signals that come are passed on to those that run."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Pass signals on. One that was ignored before, as by nohup, still is, also by workers."""
        previous = {number: signal.getsignal(number) for number in (*FORWARDED, signal.SIGQUIT)}
        heard = [number for number in FORWARDED if previous[number] != signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._forward)
        signal.signal(signal.SIGQUIT, self._quit)
        try:
            yield
        finally:
            self.send(signal.SIGKILL)
            for number in (*heard, signal.SIGQUIT):
                signal.signal(number, previous[number])

    def start(self, commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> None:
        """Start each command with its variables. They begin with signals blocked, and none is heard
        here meanwhile: one that ended this process now would leave them behind."""
        former = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            for arguments, variables in commands:
                # A session of its own: Ctrl-C in a terminal reaches it through us, and once.
                self._processes.append(
                    subprocess.Popen(arguments, env=dict(variables), start_new_session=True)
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def wait(self) -> list[Failure]:
        """Wait for all. When one fails, the others get SIGTERM, and SIGKILL later."""
        running, failures = dict(enumerate(self._processes)), list[Failure]()
        last_moment: float | None = None
        while running:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            for rank, process in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[rank]
                    failures += [Failure(rank, code, now)] if code else []
            if failures and last_moment is None:
                last_moment = now + _SECONDS_TO_END
                self.send(signal.SIGTERM)
            elif last_moment is not None and now >= last_moment:
                self.send(signal.SIGKILL)
        return failures

    def send(self, number: int) -> None:
        """Send a signal to those that run."""
        for process in self._processes:
            process.send_signal(number)

    def _forward(self, number: int, _frame: types.FrameType | None) -> None:
        if not self._processes:
            raise SystemExit(128 + number)
        self.send(number)

    def _quit(self, number: int, _frame: types.FrameType | None) -> None:
        raise SystemExit(128 + number)


def launch(num_processes: int, module: str, argv: Sequence[str]) -> int:
    """Run `python -m module argv...` as `num_processes` workers and wait for them.

    Each finds its place by the variables that torchrun sets, and the others through a file. When
    one fails the others get SIGTERM, and SIGKILL 30 seconds later. SIGINT, SIGTERM, SIGHUP,
    SIGUSR1 and SIGUSR2 are passed on to the workers; SIGQUIT ends them at once. Workers begin with
    the former blocked, and call `let_signals_through` when they can answer.

    Returns:
        0 when all succeeded, else the exit code of the failure that ended the others; 128 plus
        the signal's number if that was a signal, as a shell reports it.
    """
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    num_threads = str(max(1, num_cores // num_processes))
    command = (sys.executable, "-m", module, *argv)
    workers = _Workers()
    # mkdtemp's folders are this user's alone.
    with tempfile.TemporaryDirectory(prefix="triax-") as folder, workers.hearing():
        meeting_file = Path(folder) / "meeting"
        workers.start(
            [
                (
                    command,
                    {"OMP_NUM_THREADS": num_threads}
                    | worker_variables(os.environ, rank, num_processes, meeting_file),
                )
                for rank in range(num_processes)
            ]
        )
        failures = workers.wait()
    return exit_code(failures)


def become_worker(module: str, argv: list[str]) -> NoReturn:
    """Go on as `python -m module argv...`: one process is its own worker, so signals and the exit
    code need no passing on.

    Its imports take seconds, and Ctrl-C in one shows a traceback: it begins with SIGINT blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *argv])


def let_signals_through(*, but: Collection[signal.Signals] = ()) -> None:
    """Hear again what a worker began without, but for signals that shall wait some more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, but)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(FORWARDED).difference(but))


def exit_code(failures: Sequence[Failure]) -> int:
    """The one exit code of a run whose workers failed so; says which signal ended one, if so.

    When one worker fails the others lose their connection to it and fail too, or are ended by
    us. The cause is a signal from outside, else a code that means something, else any.
    """
    if not failures:
        return ExitCode.DONE
    first = min(failure.time for failure in failures)
    cause = min(
        (failure for failure in failures if failure.time - first < _SECONDS_OF_ONE_FAILURE),
        key=_preference,
    )
    if cause.exit_code >= 0:
        return cause.exit_code
    name = signal.Signals(-cause.exit_code).name
    hint = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    print_error(f"rank {cause.rank} was ended by {name}{hint}; the other ranks were stopped")
    return 128 - cause.exit_code


def _preference(failure: Failure) -> int:
    if failure.exit_code == -signal.SIGTERM:
        return 3
    if failure.exit_code < 0:
        return 0
    return 1 if failure.exit_code in _MEANINGFUL else 2
