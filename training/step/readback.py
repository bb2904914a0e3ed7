"""Brings a step's figures to the host one step late: the host never waits for the device."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from triax.training.step.guard import Reason
from triax.training.step.state import TrainState
from triax.training.step.step import StepResult


class StepFigures(NamedTuple):
    """One step's figures as plain numbers."""

    first_sample: int
    state: TrainState
    """After the step: its cursor is the first sample of the next one."""
    lr: float
    seconds: float
    """Wall time since the step before, or since `restart_clock`."""
    result: StepResult[float]
    """What it gave, on the host."""

    @property
    def reasons(self) -> Reason:
        """Why the update was skipped; empty if it wasn't."""
        return Reason(int(self.result.reasons))


class _OnItsWay(NamedTuple):
    first_sample: int
    state: TrainState
    lr: float
    packed: torch.Tensor
    """All figures, one after the other."""
    shapes: dict[str, torch.Size]
    """Of those in `StepResult.extra`, which come last."""
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
        self, first_sample: int, state: TrainState, lr: float, result: StepResult[Tensor]
    ) -> StepFigures | None:
        """Start copying a step's figures; returns those of the step before, if there is one."""
        previous = self.drain()
        host, event = _copy_to_host(_packed(result))
        shapes = {name: value.shape for name, value in result.extra.items()}
        self._waiting = _OnItsWay(first_sample, state, lr, host, shapes, event, time.perf_counter())
        return previous

    def drain(self) -> StepFigures | None:
        """Wait for the figures that are still on their way, if there are any."""
        if self._waiting is None:
            return None
        first_sample, state, lr, packed, shapes, event, finished_at = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
            finished_at = time.perf_counter()
        seconds, self._last = finished_at - self._last, finished_at
        return StepFigures(first_sample, state, lr, seconds, _unpacked(packed, shapes))


_NUM_SCALARS = len(StepResult._fields) - 1
"""All but `extra`, the last."""


def _packed(result: StepResult[Tensor]) -> Tensor:
    extra = [value.float().flatten() for value in result.extra.values()]
    return torch.cat((torch.stack([x for x in result if isinstance(x, Tensor)]), *extra))


def _unpacked(packed: Tensor, shapes: dict[str, torch.Size]) -> StepResult[float]:
    sizes = [shape.numel() for shape in shapes.values()]
    scalars, *extra = packed.split([_NUM_SCALARS, *sizes])
    named = {n: x.view(shape) for (n, shape), x in zip(shapes.items(), extra, strict=True)}
    return StepResult._make([*scalars.tolist(), named])


def _copy_to_host(figures: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if not figures.is_cuda:
        return figures, None
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
    host.copy_(figures, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
