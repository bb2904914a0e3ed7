"""Requests that may reach one process first and must be answered by all at the same step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from triax.common.output import tell_at_once
from triax.common.quantities import Duration, Unit
from triax.parallel.agreement import agreed


class Requests(NamedTuple):
    """What the processes have agreed to do after a step."""

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    fail: bool = False
    give_up: bool = False
    """Stop, because checkpoints can't be written."""
    retry: bool = False
    """Save, because it is time to try again after a failure."""
    hold: bool = False
    """Don't save for another reason: a save has failed, and it isn't time yet to try again."""
    overspent: bool = False
    """Don't evaluate: evaluations have taken their share of the time."""


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
    """Notes a request to stop, so that the run can save and stop at a step's end.

    SIGTERM, SIGUSR1, Ctrl-C or the end of a terminal is one; a second Ctrl-C interrupts at once.
    Ctrl-C and SIGHUP stay ignored where they are so already, as `nohup` and a shell's `&` have it.
    A context manager, that hears from `listen` on; the former handlers come back at exit.

    Args:
        tell: shows a line at once, from a signal's handler.
    """

    _ALWAYS = (signal.SIGTERM, signal.SIGUSR1)
    _UNLESS_IGNORED = (signal.SIGINT, signal.SIGHUP)

    def __init__(self, tell: Callable[[str], None] = tell_at_once) -> None:
        self.received: str | None = None
        self._tell = tell
        self._former: dict[int, Any] = {}
        self._is_over = False

    def __enter__(self) -> StopSignal:
        return self

    def listen(self) -> None:
        """From now on there is something to save: a signal no longer ends the process."""
        for number in (*self._ALWAYS, *self._UNLESS_IGNORED):
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            if number in self._ALWAYS or not is_ignored:
                self._former[number] = signal.signal(number, self._note)
        # It may have waited for this.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def end(self) -> None:
        """The run has ended, and nothing is left to stop: signals change nothing until the process
        has ended too, but for Ctrl-C, which cuts short what it still says."""
        self._is_over = True
        self._former.clear()

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def request(self, by: str) -> None:
        """Stop after this step, as a signal would have it; safe from any thread."""
        self.received = self.received or by

    def _note(self, number: int, _frame: FrameType | None) -> None:
        is_first, is_ctrl_c = self.received is None, number == signal.SIGINT
        if is_ctrl_c and (self._is_over or not is_first):
            raise KeyboardInterrupt
        if self._is_over:
            return
        self.received = signal.Signals(number).name
        if is_first:
            how = "; Ctrl-C again quits at once, unsaved" if is_ctrl_c else ""
            self._tell(f"{self.received}: the run stops and saves after this step{how}")
