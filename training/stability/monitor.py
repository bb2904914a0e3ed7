"""All that watches over a run, as the loop meets it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch.distributed as dist

from triax.data.read.loader import Loader
from triax.parallel.agreement import decided, reported
from triax.parallel.config import ParallelConfig
from triax.parallel.engine import Engine
from triax.parallel.layout import Layout
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.profiling import Profiling
from triax.training.stability.control import ControlLine, StopSignal
from triax.training.stability.escalation import Escalation
from triax.training.stability.faults import FaultInjector
from triax.training.stability.recovery import Recovery
from triax.training.stability.replicas import (
    Checksums,
    checksums,
    differing_ranks,
    reader_groups,
    replica_groups,
)
from triax.training.stability.stragglers import StragglerWatch
from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Reason
from triax.training.step.readback import StepFigures
from triax.training.step.state import TrainState

T = TypeVar("T")
log = logging.getLogger("triax.monitor")


@dataclass
class Monitor:
    """Guard's host side, requests to stop, watchdog, stragglers, replicas and rehearsed faults of
    one process.

    Attributes:
        engine, loader: of the run; read to find where a value that is not finite came from.
        escalation: counts refusals.
        recovery: does what follows.
        control: agrees on requests between processes.
        stop: notes signals.
        stragglers: compares the processes' own times.
        faults: rehearsed failures.
        profiling: looks into the steps that were chosen for it.
        beat: tells the watchdog that the main thread goes on to an activity of a step.
        group: gloo group of the main thread; None for a single process.
        hosts: every rank's host, on the first rank.
    """

    config: StabilityConfig
    parallel: ParallelConfig
    layout: Layout
    engine: Engine
    loader: Loader
    escalation: Escalation
    recovery: Recovery
    control: ControlLine
    stop: StopSignal
    stragglers: StragglerWatch
    faults: FaultInjector
    profiling: Profiling
    metrics_logger: MetricsLogger
    beat: Callable[[str, int], None]
    group: dist.ProcessGroup | None
    hosts: list[str]

    def __post_init__(self) -> None:
        self._free_since = time.perf_counter()
        self._named_ranks: set[int] = set()
        self.corruption: str | None = None
        """Of the data of a step whose figures are known: what is wrong, the same on all ranks."""

    def between_steps(self, step: int) -> None:
        """Nothing is left of the last step; the data of `step` is read now."""
        self.beat("reading data", step)
        self._free_since = time.perf_counter()

    def before_step(self, after: TrainState, num_sequences: int) -> None:
        """The step that leads to `after` begins, and its data is there."""
        self.beat("preparing the step", after.step)
        self.faults.begin_batch(after.cursor // num_sequences)
        self.faults.at("before-update", after.step)
        for straggler in self.stragglers.step(time.perf_counter() - self._free_since):
            self._tell_straggler(straggler.rank, straggler.what, after.step)
        self.beat("in the step", after.step)
        self.profiling.before_step(after.step)

    def after_step(self, after: TrainState) -> None:
        """The step's figures are on their way."""
        self.profiling.after_step(after.step)
        self.faults.at("after-update", after.step)
        self.beat("between steps", after.step)

    def leave_out(self, seconds: float) -> None:
        """An evaluation or a save took so long: no part of a step."""
        self.stragglers.leave_out(seconds)

    def observe(self, figures: StepFigures) -> None:
        """A step's verdict is known; a refused one is told. Collective, in the order of steps."""
        was_refusing = self.escalation.is_refusing
        self.escalation.observe(figures)
        if figures.result.data_differs:
            self._name_readers(figures)
        if not figures.result.skipped:
            return
        fields = {
            "step": figures.state.step,
            "samples": [figures.first_sample, figures.state.cursor],
            "reason": figures.reasons.describe(),
            "loss": repr(figures.result.loss),
            "grad_norm": repr(figures.result.grad_norm),
            "loss_score": figures.result.loss_score,
            "norm_score": figures.result.norm_score,
            "drift_score": figures.result.drift_score,
            "loss_scale": figures.result.loss_scale,
            "recent_refusals": len(self.escalation.refusals),
        }
        if Reason.NON_FINITE in figures.reasons:
            fields |= self._non_finite_source(figures, is_first=not was_refusing)
        self.metrics_logger.event("skipped_update", **fields)

    def look_for_corruption(self, state: TrainState) -> str | None:
        """Whether processes differ that must not; what is wrong, or None. Collective."""
        return self.corruption or self._compare_replicas(state)

    @cached_property
    def _replicas(self) -> list[list[int]]:
        """At thousands of ranks they take long to list: not before they are compared."""
        return replica_groups(self.layout, self.parallel)

    def _compare_replicas(self, state: TrainState) -> str | None:
        """Now and then, whether replicas are still equal."""
        every = self.config.checksum_every
        if every is None or state.step % every or all(len(g) == 1 for g in self._replicas):
            return None
        self.beat("comparing replicas", state.step)
        return decided(
            lambda: checksums(self.engine.state()), partial(self._wrong_replicas, state), self.group
        )

    def _wrong_replicas(self, state: TrainState, found: list[Checksums]) -> str | None:
        wrong = differing_ranks(self._replicas, found)
        if not wrong:
            return None
        self.metrics_logger.event(
            "silent_corruption", step=state.step, ranks=wrong,
            checksums={str(rank): list(sums) for rank, sums in enumerate(found)},
        )  # fmt: skip
        return (
            f"silent corruption: the weights or optimizer state of {self._names(wrong)} differ "
            "from those of their replicas, which must be bitwise equal: suspect the device's memory"
        )

    def _names(self, wrong: list[int]) -> str:
        names = ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in wrong)
        return names if len(wrong) == 1 else f"{names} (at least one of them)"

    def _name_readers(self, figures: StepFigures) -> None:
        """Tell who has read other data than its peers on the tensor and pipeline axes."""
        self.corruption = decided(
            lambda: figures.result.own_fingerprint,
            partial(self._wrong_readers, figures),
            self.group,
        )

    def _wrong_readers(self, figures: StepFigures, found: list[object]) -> str:
        wrong = differing_ranks(reader_groups(self.layout), found)
        step, samples = figures.state.step, [figures.first_sample, figures.state.cursor]
        self.metrics_logger.event("data_differs", step=step, samples=samples, ranks=wrong)
        return (
            f"for step {step} {self._names(wrong)} worked on other tokens than the processes of "
            "its tensor and pipeline group, which read the same samples: suspect that host's "
            "memory, or its copy of the data"
        )

    def _non_finite_source(self, figures: StepFigures, *, is_first: bool) -> dict[str, object]:
        """Which ranks' own loss was not finite, and on demand where it came from."""
        broken = reported(lambda: None if figures.result.own_finite else True, self.group)
        source: dict[str, object] = {"ranks": sorted(broken)}
        if self.config.locate_nonfinite and is_first:
            self.beat("locating non-finite values", figures.state.step)
            batch = self.loader.batch_at(figures.first_sample)
            found = reported(partial(self.engine.locate_non_finite, batch), self.group)
            source["located"] = {str(rank): name for rank, name in sorted(found.items())}
        return source

    def _tell_straggler(self, rank: int, what: str, step: int) -> None:
        if not self.hosts:  # the first rank alone tells
            return
        self.metrics_logger.event(
            "straggler", step=step, rank=rank, host=self.hosts[rank], what=what
        )
        if rank not in self._named_ranks:
            self._named_ranks.add(rank)
            self.metrics_logger.say(f"straggler: rank {rank} on {self.hosts[rank]} {what}")
