"""Requests that may reach one process first and must be answered by all at the same step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist

from triax.checkpoint.agreement import agreed
from triax.common.quantities import Duration, Unit


class Requests(NamedTuple):
    """What the processes have agreed to do after a step."""

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    fail: bool = False
    give_up: bool = False
    """Stop, because checkpoints can't be written."""


STEPS_TO_AGREE = 1
"""A request of one step is answered after the step that is so many behind it."""


class ControlLine:
    """Agrees on requests: one that any process raises is answered by all, a step later.

    The exchange of one step runs while the next one computes, so it costs no waiting. A single
    process (`group` is None) answers at once.

    Args:
        group: a gloo group, or None. Others may use it too: all processes in the same order.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._flags: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def exchange(self, requests: Requests) -> Requests:
        """Raise this process's requests; returns what all have agreed on."""
        if self._group is None:
            return requests
        answer = Requests()
        if self._work is not None and self._flags is not None:
            self._work.wait()
            answer = Requests(*(bool(flag) for flag in self._flags.tolist()))
        self._flags = torch.tensor(requests, dtype=torch.int32)
        self._work = dist.all_reduce(
            self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return answer

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every process what the first of them brings, if any does. Waits for all.

        Raises:
            UserError: it is one.
            RankError: it is anything else.
        """

        def bring() -> None:
            if error is not None:
                raise error

        agreed(bring, self._group)


class Timer:
    """Asks for something each time a span of wall time has passed."""

    def __init__(self, every: Duration | None, clock: Callable[[], float] = time.monotonic) -> None:
        timed = every is not None and every.unit is Unit.SECONDS
        self._period = every.amount if every is not None and timed else None
        self._clock = clock
        self._last = clock()

    def is_due(self) -> bool:
        """Whether the span has passed since the start or the last `restart`."""
        return self._period is not None and self._clock() - self._last >= self._period

    def restart(self) -> None:
        """Begin the span anew."""
        self._last = self._clock()


class StopSignal:
    """Notes SIGTERM, SIGUSR1 or Ctrl-C, so that the run can save and stop at a step's end.

    A second Ctrl-C interrupts at once. A context manager: the former handlers come back at exit.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> StopSignal:
        self._former = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        # It may have waited for this.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
