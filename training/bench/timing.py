"""Stopwatches: for one operation alone, and for steps that follow one another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from triax.training.step.readback import Readback, StepFigures
from triax.training.step.state import TrainState
from triax.training.step.step import StepResult

Step = Callable[[int], StepResult[Tensor]]
"""Takes the step of a number, counted from 0, and doesn't wait for the device."""

_NUM_ROUNDS = 5
_ROUND_SECONDS = {"cuda": 0.02, "cpu": 0.005}
_MAX_CALLS = 1000


def seconds_of(operation: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, back to back with others: the median of a few rounds.

    By the device's own clock on a GPU, whose launches the host then hides.
    """
    operation()
    once = _round(operation, device, 1)
    num_calls = min(_MAX_CALLS, max(1, int(_ROUND_SECONDS[device.type] / max(once, 1e-7))))
    rounds = [_round(operation, device, num_calls) for _ in range(_NUM_ROUNDS)]
    return statistics.median(rounds) / num_calls


def _round(operation: Callable[[], object], device: torch.device, num_calls: int) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(num_calls):
            operation()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num_calls):
        operation()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


class Laps(NamedTuple):
    """Steps in a row, as the training loop would see them."""

    figures: list[StepFigures]
    allocated: list[int]
    """Bytes in tensors after each step, as the host counts them; empty on a CPU."""


def run_laps(step: Step, first: int, num_steps: int, device: torch.device) -> Laps:
    """Take steps as the training loop does: the host is at most one step ahead.

    Args:
        step: takes one.
        first: the first one's number.
        num_steps: how many.
        device: where they compute.
    """
    readback = Readback()
    figures: list[StepFigures | None] = []
    allocated: list[int] = []
    for number in range(first, first + num_steps):
        figures.append(readback.push(0, TrainState(step=number + 1), 0.0, step(number)))
        if device.type == "cuda":
            allocated.append(torch.cuda.memory_allocated(device))
    figures.append(readback.drain())
    return Laps([each for each in figures if each is not None], allocated)
