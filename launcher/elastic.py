"""Start a run's processes on this machine with torch's elastic agent, and report how they ended.

torchrun's own command turns every exit code into 1, prints its table of errors below the
worker's message, and kills workers half a minute after SIGTERM, in the middle of a long save.
So the agent is started here: the workers' exit code is returned, only they speak, and a signal
is theirs to answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from triax.common.errors import ExitCode
from triax.launcher.messages import print_error

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_OF_ONE_FAILURE = 5
"""Workers that end this much later than the first were ended by it, or by the agent."""
_MEANINGFUL = (ExitCode.BAD_INPUT, ExitCode.STOPPED_BY_GUARD, ExitCode.PREEMPTED)


@dataclass(frozen=True)
class Failure:
    """How one worker ended, other than well."""

    rank: int
    exit_code: int
    """Minus the signal's number if a signal ended it, as in `subprocess`."""
    time: float
    """Seconds since the epoch."""


class _Forwarding:
    """Passes signals on to running processes; while there are none, they end this one.

    Attributes:
        process_ids: of those that run.
    """

    def __init__(self) -> None:
        self.process_ids: list[int] = []
        self._is_starting = False
        self._waiting: list[int] = []

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals so. One that is ignored stays so, here and in the processes that are
        started: `nohup` means that a closed terminal is nothing to hear of."""
        previous: Mapping[signal.Signals, object] = {
            number: signal.signal(number, self._forward)
            for number in FORWARDED
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def to_those_that_start(self) -> Iterator[None]:
        """Keep signals for the processes that are started meanwhile, which begin without hearing
        any: one that ended this process now would leave them behind."""
        self._is_starting = True
        former = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            self._is_starting = False
        for number in self._waiting:
            self._forward(number, None)

    def _forward(self, number: int, _frame: types.FrameType | None) -> None:
        if self._is_starting:
            self._waiting.append(number)
            return
        if not self.process_ids:
            raise SystemExit(128 + number)
        for process_id in self.process_ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, number)


def launch(num_processes: int, module: str, argv: Sequence[str]) -> int:
    """Run `python -m module argv...` as `num_processes` workers and wait for them.

    Workers find each other through the variables that torchrun sets. When one fails the others
    get SIGTERM, and SIGKILL 30 seconds later. SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are
    passed on to the workers; SIGQUIT ends them at once. Workers begin with the former blocked, and
    call `let_signals_through` when they can answer.

    Returns:
        0 when all succeeded, else the exit code of the failure that ended the others; 128 plus
        the signal's number if that was a signal, as a shell reports it.
    """
    # Only here, so that the command that checks the config first needs no torch for that.
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    signals = _Forwarding()

    class Agent(LocalElasticAgent):
        """Tells who its workers are as soon as it knows."""

        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            with signals.to_those_that_start():
                started: dict[int, Any] = super()._start_workers(worker_group)
                signals.process_ids = list(started.values())
            return started

    _silence_agent()
    _set_worker_variables(num_processes)
    rendezvous = get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint="localhost:0",
            run_id=uuid.uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            local_addr="localhost",
        )
    )
    spec = WorkerSpec(
        role="triax",
        local_world_size=num_processes,
        rdzv_handler=rendezvous,
        entrypoint=sys.executable,
        args=("-m", module, *argv),
        max_restarts=0,
        local_addr="localhost",
    )
    with tempfile.TemporaryDirectory(prefix="triax-") as folder:
        agent = Agent(spec, DefaultLogsSpecs(log_dir=folder))
        try:
            with signals.handled():
                result: RunResult = agent.run()
        except SignalException as error:
            return 128 + int(error.sigval)
        finally:
            rendezvous.shutdown()
    return exit_code(
        [
            Failure(rank, failure.exitcode, failure.timestamp)
            for rank, failure in result.failures.items()
        ]
    )


def become_worker(module: str, argv: list[str]) -> NoReturn:
    """Go on as `python -m module argv...`: one process is its own worker, so signals and the exit
    code need no passing on.

    Its imports take seconds, and Ctrl-C in one shows a traceback: it begins with SIGINT blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *argv])


def let_signals_through() -> None:
    """Hear again what a worker began without."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def exit_code(failures: Sequence[Failure]) -> int:
    """The one exit code of a run whose workers failed so; says which signal ended one, if so.

    When one worker fails the others lose their connection to it and fail too, or are ended by
    the agent. The cause is a signal from outside, else a code that means something, else any.
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


def _silence_agent() -> None:
    """The workers' own messages say what is wrong; the agent would add its tracebacks."""
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _set_worker_variables(num_processes: int) -> None:
    """Set what the agent and the workers can only be told through the environment."""
    num_cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // num_processes)))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
