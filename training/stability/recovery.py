"""Carries out what the escalation decides: rollback, new level, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from triax.checkpoint.folders import CheckpointInfo
from triax.checkpoint.store import CheckpointStore
from triax.common.errors import ExitCode, UserError
from triax.parallel.engine import Engine
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.saving import Saver
from triax.training.stability.escalation import Action, Escalation, NewLevel, Rollback, Stop
from triax.training.stability.report import stop_report
from triax.training.step.guard import Guard
from triax.training.step.state import TrainState


@dataclass(frozen=True)
class Ending:
    """Why the loop ends, other than by its budget."""

    code: ExitCode
    reason: str


class Recovery:
    """Brings the run back to before the trouble, or ends it with a report.

    Args:
        engine: whose state is taken back.
        guard: taken back too.
        escalation: which is not: it remembers what was tried.
        store, saver: the checkpoints.
        restore: puts the other parts of a checkpoint's record back (guard, loss scale).
        changes_between: whether the data changes by plan between two samples.
        metrics_logger: where it is told.
    """

    def __init__(
        self,
        engine: Engine,
        guard: Guard,
        escalation: Escalation,
        store: CheckpointStore,
        saver: Saver,
        restore: Callable[[Mapping[str, Any]], None],
        changes_between: Callable[[int, int], bool],
        metrics_logger: MetricsLogger,
    ) -> None:
        self._engine = engine
        self._guard = guard
        self._escalation = escalation
        self._store = store
        self._saver = saver
        self._restore = restore
        self._changes_between = changes_between
        self._metrics_logger = metrics_logger

    def act(self, action: Action, state: TrainState) -> tuple[TrainState, Ending | None]:
        """Do it; every verdict up to `state` has been read. Collective.

        Returns:
            The state to go on from, and the ending if the run is to stop.
        """
        if isinstance(action, NewLevel):
            self._guard.forget()
            self._escalation.accepted_new_level()
            self._metrics_logger.event("new_level", step=state.step, cursor=state.cursor)
            self._metrics_logger.say(
                f"the guard takes the loss after step {state.step} as a new level"
            )
            return state, None
        if isinstance(action, Stop):
            return state, self.stop(action.reason, state)
        return self._roll_back(action, state)

    def stop(self, reason: str, state: TrainState) -> Ending:
        """Write the report and end with the guard's exit code."""
        run_dir = self._metrics_logger.directory.path
        self._metrics_logger.event("stop", step=state.step, cursor=state.cursor, reason=reason)
        self._metrics_logger.report(stop_report(run_dir, reason, state, self._escalation))
        return Ending(ExitCode.STOPPED_BY_GUARD, reason)

    def _roll_back(self, action: Rollback, state: TrainState) -> tuple[TrainState, Ending | None]:
        self._saver.wait()
        info = self._target(action)
        if info is None or info.manifest is None:
            reason = (
                f"{self._escalation.trouble}, and there is no good checkpoint from before step "
                f"{action.began}, where the trouble began"
            )
            return state, self.stop(reason, state)
        record = self._store.load(info, self._engine.state())
        self._restore(record)
        # Tokens come back, for they drive the learning rate; samples never do.
        target = replace(state, step=record["step"], tokens=record["tokens"])
        skipped = (record["cursor"], state.cursor)
        if self._changes_between(*skipped):
            # It knows the loss of the data from before the border, and the run goes on behind it.
            self._guard.forget()
        trouble, num_refused = self._escalation.trouble, len(self._escalation.refusals)
        self._escalation.rolled_back(target.step, skipped)
        self._store.discard_after(target.step)
        self._metrics_logger.abandon(target.step)
        self._metrics_logger.event(
            "rollback", from_step=state.step, to_step=target.step, began=action.began,
            num_refused=num_refused, skipped_samples=list(skipped),
            num_rollbacks=self._escalation.num_rollbacks, checkpoint=str(info.path),
        )  # fmt: skip
        self._metrics_logger.say(
            f"rolled back from step {state.step} to step {target.step}: {trouble}; "
            f"samples {skipped[0]} to {skipped[1] - 1} are skipped"
        )
        # At once, so that a run killed now does not go through all of it again and again.
        self._saver.save(target)
        return target, None

    def _target(self, action: Rollback) -> CheckpointInfo | None:
        """With the margin if there is such a checkpoint, else any from before the trouble."""
        for before in dict.fromkeys((action.before, action.began)):
            try:
                info = self._store.newest_good(before=before)
            except UserError:  # there are some, and all are bad
                continue
            if info is not None:
                return info
        return None
