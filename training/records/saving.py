"""Saves a run's checkpoints, and tries again when one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from triax.checkpoint.store import CheckpointStore, SaveOutcome
from triax.common.quantities import format_seconds
from triax.parallel.agreement import reported
from triax.parallel.engine import Engine
from triax.parallel.nonfinite import first_non_finite
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.step.state import TrainState

_LONGEST_WAIT = 1800.0
_LAST_ATTEMPTS = 3
"""Of the run's last save, which has no later one to make up for it."""


class Saver:
    """Begins saves, reports how they ended, and asks for another one after a failure.

    The first retry comes after `retry_seconds`, each further one after twice the time before.
    Weights that aren't finite are not saved: they would pass for good ones, and push those out.

    Args:
        store: where checkpoints go.
        engine: whose state is saved.
        make_record: the JSON record of a checkpoint for a state.
        metrics_logger: where outcomes are told.
        retry_seconds: until the first retry.
        max_failures: so many failures in a row, and the run should stop.
        group: gloo group of the main thread; None for a single process.
        saved_step: the step of the good checkpoint that the run goes on from, if it does.
        clock: seconds.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        make_record: Callable[[TrainState], dict[str, Any]],
        metrics_logger: MetricsLogger,
        *,
        retry_seconds: float,
        max_failures: int,
        group: dist.ProcessGroup | None = None,
        saved_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._make_record = make_record
        self._metrics_logger = metrics_logger
        self._retry_seconds = retry_seconds
        self._max_failures = max_failures
        self._group = group
        self._clock = clock
        self._retry_at: float | None = None
        self.num_failures = 0
        """In a row."""
        self.saved_step = saved_step
        """The step of the newest checkpoint that is known to be saved."""
        self.refused_step: int | None = None
        """The newest step that wasn't saved because its weights were not finite."""

    @property
    def has_given_up(self) -> bool:
        """Whether the run should stop, because checkpoints can't be written."""
        return self.num_failures >= self._max_failures

    def wants_retry(self) -> bool:
        """Whether it is time to try again after a failure; processes may differ by a moment."""
        return self._retry_at is not None and self._clock() >= self._retry_at

    def waits_to_retry(self) -> bool:
        """Whether a save has failed and it isn't time yet to try again; processes may differ."""
        return self._retry_at is not None and not self.wants_retry()

    def save(self, state: TrainState) -> str | None:
        """Begin a checkpoint; every verdict up to `state` has been read. Collective.

        Returns:
            Why it is refused: the weights are not finite. None if it has begun.
        """
        self.wait()
        self._retry_at = None
        tensors = self._engine.state()
        if (refusal := self._refusal(tensors)) is not None:
            self._tell_refusal(state.step, refusal)
            return refusal
        self._store.save(state.step, tensors, self._make_record(state))
        return None

    def save_at_last(self, state: TrainState) -> str | None:
        """Save, wait for the file system, and try a few times. Collective.

        Returns:
            Why it failed or was refused; None if it is saved.
        """
        for attempt in range(_LAST_ATTEMPTS):
            if attempt:
                time.sleep(self._wait_after(attempt))
            if (refusal := self.save(state)) is not None:
                return refusal
            error = self.wait()
            if error is None:
                return None
        return error

    def poll(self) -> None:
        """Report the saves that have ended, without waiting."""
        while (outcome := self._store.poll()) is not None:
            self._report(outcome)

    def wait(self) -> str | None:
        """Wait until no save runs. Returns why the last one failed, or None."""
        last = self._store.wait()
        while last is not None:
            self._report(last)
            error, last = last.error, self._store.poll()
            if last is None:
                return error
        return None

    def _refusal(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The same on every rank."""
        weights = {name: t for name, t in tensors.items() if name.startswith("model.")}
        broken = reported(partial(first_non_finite, weights), self._group)
        if not broken:
            return None
        rank, name = min(broken.items())
        others = f" and {len(broken) - 1} other ranks" if len(broken) > 1 else ""
        return f"the weights are not finite ({name.removeprefix('model.')} on rank {rank}{others})"

    def _wait_after(self, num_failures: int) -> float:
        """Seconds until the next attempt."""
        doublings = min(num_failures - 1, 60)  # a float ends at 1024 of them
        return min(_LONGEST_WAIT, self._retry_seconds * 2.0**doublings)

    def _tell_refusal(self, step: int, refusal: str) -> None:
        if self.refused_step != step:
            self._metrics_logger.event("checkpoint_refused", step=step, reason=refusal)
            self._metrics_logger.say(
                f"step {step} is NOT saved: {refusal}; the last good checkpoint stays"
            )
        self.refused_step = step

    def _report(self, outcome: SaveOutcome) -> None:
        if outcome.error is None:
            self.num_failures, self._retry_at = 0, None
            self.saved_step = outcome.step
            self._metrics_logger.event(
                "checkpoint", step=outcome.step, seconds=outcome.seconds, bytes=outcome.num_bytes
            )
            return
        self.num_failures += 1
        wait = self._wait_after(self.num_failures)
        self._retry_at = self._clock() + wait
        self._metrics_logger.event(
            "checkpoint_failed", step=outcome.step, error=outcome.error,
            num_failures=self.num_failures, retry_seconds=wait,
        )  # fmt: skip
        self._metrics_logger.say(
            f"checkpoint of step {outcome.step} FAILED: {outcome.error}; training goes on, the "
            f"last good checkpoint stays, next attempt in {format_seconds(wait)} "
            f"({self.num_failures} of {self._max_failures} failures in a row)"
        )
