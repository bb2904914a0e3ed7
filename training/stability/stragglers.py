"""Names processes that hold the others up, from what each spends by itself.

In a data-parallel step all processes take equally long, since they wait for each other. What
tells them apart is the time that a process spends before it joins the others in a step (reading
data, a busy or broken host), and how long its device takes for a fixed small product.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from math import ceil, floor

import torch
import torch.distributed as dist

from triax.parallel.agreement import Aside
from triax.parallel.collectives import broadcast_object, gather_objects

_LEAST_EXTRA_SECONDS = 0.01
"""A step: below, it isn't worth a word."""
_PROBE_SIZE = 2048
_TAG = 2
"""Of the comparison, which goes on beside the main thread's talk and the requests' exchange."""


@dataclass(frozen=True)
class Straggler:
    """A process that is slower than the others."""

    rank: int
    what: str


class StragglerWatch:
    """Compares processes every so many steps; the exchange runs while the next step computes.

    Args:
        group: a gloo group that the main thread uses; None for a single process.
        every: steps between comparisons.
        factor: see `[stability] straggler_factor`.
        device: where the engine computes; a CPU is not probed.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, every: int, factor: float, device: torch.device
    ) -> None:
        self._group = group
        self._every = every
        self._factor = factor
        self._probe = _Probe(device) if device.type == "cuda" else None
        self._own_seconds = self._step_seconds = 0.0
        self._num_steps = 0
        self._last: float | None = None
        self._aside: Aside[list[Straggler]] = Aside()

    def step(self, own_seconds: float) -> list[Straggler]:
        """Count a step; every so often, returns who was slow. Called alike by all processes.

        Args:
            own_seconds: from the end of the last step to joining the others in this one.
        """
        if self._group is None:
            return []
        now = time.perf_counter()
        if self._last is not None:
            self._own_seconds += own_seconds
            self._step_seconds += now - self._last
            self._num_steps += 1
        self._last = now
        found = self._aside.result() or []
        if self._num_steps == self._every:
            self._exchange()
        return found

    def leave_out(self, seconds: float) -> None:
        """An evaluation or a save took so long: no part of a step."""
        if self._last is not None:
            self._last += seconds

    def _exchange(self) -> None:
        own, step = self._own_seconds / self._num_steps, self._step_seconds / self._num_steps
        self._own_seconds, self._step_seconds, self._num_steps = 0.0, 0.0, 0
        probe = self._probe.seconds() if self._probe is not None else 0.0
        self._aside.begin(partial(self._compare, (own, step, probe)))

    def _compare(self, figures: tuple[float, float, float]) -> list[Straggler]:
        rows = gather_objects(figures, self._group, _TAG)
        found: list[Straggler] = []
        if rows is not None:
            own, step, probe = map(list, zip(*rows, strict=True))
            found = find_stragglers(own, step, probe, self._factor)
        return broadcast_object(found, self._group, _TAG)


def find_stragglers(
    own: list[float], step: list[float], probe: list[float], factor: float
) -> list[Straggler]:
    """Who makes a step `factor` times as long as it would be, or computes so much slower.

    Args:
        own: seconds a step that each rank spends by itself.
        step: seconds a step in all.
        probe: seconds of the fixed product; 0 where there is none.
    """
    found = []
    usual_own, usual_probe = _medians_of_others(own), _medians_of_others(probe)
    usual_step = statistics.median(step)
    for rank in range(len(own)):
        extra = own[rank] - usual_own[rank]
        without = max(usual_step - extra, 1e-9)
        if extra > max(_LEAST_EXTRA_SECONDS, (factor - 1) * without):
            found.append(
                Straggler(
                    rank,
                    f"spends {own[rank]:.3f} s a step before it joins the others, {extra:.3f} s "
                    f"more than they do; the step would take {without:.3f} s",
                )
            )
        usual = usual_probe[rank]
        if usual > 0 and probe[rank] > factor * usual:
            found.append(
                Straggler(rank, f"its device computes {probe[rank] / usual:.1f} times slower")
            )
    return found


def _medians_of_others(values: list[float]) -> list[float]:
    """For each of two values or more, the median of the rest, sorted once."""
    ordered, middle = sorted(values), (len(values) - 2) / 2
    medians = []
    for value in values:
        place = bisect_left(ordered, value)
        low, high = floor(middle), ceil(middle)
        pair = [ordered[i if i < place else i + 1] for i in (low, high)]
        medians.append(sum(pair) / 2)
    return medians


class _Probe:
    """Times a product on the device without waiting for it: each call tells of the last one."""

    def __init__(self, device: torch.device) -> None:
        self._matrix = torch.randn(_PROBE_SIZE, _PROBE_SIZE, device=device, dtype=torch.bfloat16)
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def seconds(self) -> float:
        """Of the product that the last call has started; 0 at the first."""
        elapsed = 0.0
        if self._events is not None and self._events[1].query():
            elapsed = self._events[0].elapsed_time(self._events[1]) / 1000
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(4):
            torch.mm(self._matrix, self._matrix)
        end.record()
        self._events = begin, end
        return elapsed
