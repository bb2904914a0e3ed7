"""Brings a step's figures to the host one step late: the host never waits for the device."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from triax.training.step.guard import Reason
from triax.training.step.state import TrainState
from triax.training.step.step import StepResult


class StepFigures(NamedTuple):
    """One step's figures as plain numbers."""

    first_sample: int
    state: TrainState
    """After the step: its cursor is the first sample of the next one."""
    lr: float
    loss: float
    grad_norm: float
    num_targets: int
    skipped: bool
    loss_scale: float
    reasons: Reason
    """Why the update was skipped; empty if it wasn't."""
    loss_score: float
    norm_score: float
    drift_score: float
    own_finite: bool
    """Whether this process's own part of the loss was finite."""
    seconds: float
    """Wall time since the step before, or since `restart_clock`."""
    own_fingerprint: int = 0
    """Of the data that this process has read, see `Counts`."""
    data_differs: bool = False
    """Whether processes that should work on the same samples have read others."""


class _OnItsWay(NamedTuple):
    first_sample: int
    state: TrainState
    lr: float
    figures: torch.Tensor
    event: torch.cuda.Event | None
    pushed_at: float


class Readback:
    """A one-step queue: `push` a step, get the figures of the step before."""

    def __init__(self) -> None:
        self._waiting: _OnItsWay | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out what lay between the last step and now: an evaluation or a save."""
        self._last = time.perf_counter()

    def push(
        self, first_sample: int, state: TrainState, lr: float, result: StepResult
    ) -> StepFigures | None:
        """Start copying a step's figures; returns those of the step before, if there is one."""
        previous = self.drain()
        host, event = _copy_to_host(torch.stack(result))
        self._waiting = _OnItsWay(first_sample, state, lr, host, event, time.perf_counter())
        return previous

    def drain(self) -> StepFigures | None:
        """Wait for the figures that are still on their way, if there are any."""
        if self._waiting is None:
            return None
        first_sample, state, lr, figures, event, finished_at = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
            finished_at = time.perf_counter()
        seconds, self._last = finished_at - self._last, finished_at
        result = StepResult(*figures.tolist())
        return StepFigures(
            first_sample=first_sample,
            state=state,
            lr=lr,
            seconds=seconds,
            **result._asdict()
            | {
                "num_targets": int(result.num_targets),
                "skipped": bool(result.skipped),
                "reasons": Reason(int(result.reasons)),
                "own_finite": bool(result.own_finite),
                "own_fingerprint": int(result.own_fingerprint),
                "data_differs": bool(result.data_differs),
            },
        )


def _copy_to_host(figures: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if not figures.is_cuda:
        return figures, None
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
    host.copy_(figures, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
