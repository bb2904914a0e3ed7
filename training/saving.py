"""Saves a run's checkpoints, and tries again when one fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from triax.checkpoint.store import CheckpointStore, SaveOutcome
from triax.common.quantities import format_seconds
from triax.parallel.engines.protocol import Engine
from triax.training.outlets import Outlets
from triax.training.state import TrainState

_LONGEST_WAIT = 1800.0
_LAST_ATTEMPTS = 3
"""Of the run's last save, which has no later one to make up for it."""


class Saver:
    """Begins saves, reports how they ended, and asks for another one after a failure.

    The first retry comes after `retry_seconds`, each further one after twice the time before.

    Args:
        store: where checkpoints go.
        engine: whose state is saved.
        make_record: the JSON record of a checkpoint for a state.
        outlets: where outcomes are told.
        retry_seconds: until the first retry.
        max_failures: so many failures in a row, and the run should stop.
        saved_step: the step of the good checkpoint that the run goes on from, if it does.
        clock: seconds.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        make_record: Callable[[TrainState], dict[str, Any]],
        outlets: Outlets,
        *,
        retry_seconds: float,
        max_failures: int,
        saved_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._make_record = make_record
        self._outlets = outlets
        self._retry_seconds = retry_seconds
        self._max_failures = max_failures
        self._clock = clock
        self._retry_at: float | None = None
        self.num_failures = 0
        """In a row."""
        self.saved_step = saved_step
        """The step of the newest checkpoint that is known to be saved."""

    @property
    def has_given_up(self) -> bool:
        """Whether the run should stop, because checkpoints can't be written."""
        return self.num_failures >= self._max_failures

    def wants_retry(self) -> bool:
        """Whether it is time to try again after a failure; processes may differ by a moment."""
        return self._retry_at is not None and self._clock() >= self._retry_at

    def save(self, state: TrainState) -> None:
        """Begin a checkpoint; every verdict up to `state` has been read. Collective."""
        self.wait()
        self._retry_at = None
        self._store.save(state.step, self._engine.state(), self._make_record(state))

    def save_at_last(self, state: TrainState) -> str | None:
        """Save, wait for the file system, and try a few times. Collective.

        Returns:
            Why it failed; None if it is saved.
        """
        for attempt in range(_LAST_ATTEMPTS):
            if attempt:
                time.sleep(self._retry_seconds * 2 ** (attempt - 1))
            self.save(state)
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

    def _report(self, outcome: SaveOutcome) -> None:
        if outcome.error is None:
            self.num_failures, self._retry_at = 0, None
            self.saved_step = outcome.step
            self._outlets.event(
                "checkpoint", step=outcome.step, seconds=outcome.seconds, bytes=outcome.num_bytes
            )
            return
        wait = min(_LONGEST_WAIT, self._retry_seconds * 2**self.num_failures)
        self.num_failures += 1
        self._retry_at = self._clock() + wait
        self._outlets.event(
            "checkpoint_failed", step=outcome.step, error=outcome.error,
            num_failures=self.num_failures, retry_seconds=wait,
        )  # fmt: skip
        self._outlets.say(
            f"checkpoint of step {outcome.step} FAILED: {outcome.error}; training goes on, the "
            f"last good checkpoint stays, next attempt in {format_seconds(wait)} "
            f"({self.num_failures} of {self._max_failures} failures in a row)"
        )
