"""The training loop: batch, step, figures, and now and then a validation or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triax.checkpoint.store import CheckpointStore, SaveOutcome
from triax.common.errors import ExitCode
from triax.common.quantities import Duration
from triax.data.loader import Batch, Loader
from triax.training.console import Console
from triax.training.control import STEPS_TO_AGREE, ControlLine, Requests, StopSignal, Timer
from triax.training.evaluation import Evaluation, evaluate
from triax.training.lookahead import Lookahead
from triax.training.metrics import Boards, Row
from triax.training.readback import Readback, StepFigures
from triax.training.run_directory import RunDirectory
from triax.training.stability.faults import FaultInjector
from triax.training.state import TrainState, crossed
from triax.training.step import StepContext, train_step


@dataclass(frozen=True)
class Plan:
    """What the loop does when; all of it known before the first step."""

    num_steps: int
    global_batch_size: int
    seq_len: int
    save_every: Duration | None
    evaluate_every: Duration | None
    log_every: int
    max_consecutive_skips: int


@dataclass(frozen=True)
class Outcome:
    """How a run's loop ended."""

    code: ExitCode
    reason: str
    state: TrainState
    evaluation: Evaluation | None
    """The last validation."""
    tokens_per_second: float
    """Median over the steps of this session."""


@dataclass(frozen=True)
class Outlets:
    """Where the loop's figures go; on rank 0 only, the others' are silent."""

    is_main: bool
    directory: RunDirectory
    boards: Boards
    console: Console
    make_row: Callable[[StepFigures], Row]

    def step(self, figures: StepFigures) -> None:
        """Log one step."""
        if self.is_main:
            row = self.make_row(figures)
            self.directory.append_metrics(row)
            self.boards.log_row(row)
            self.console.show(row)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Log one validation."""
        self.event(
            "evaluation", step=step, loss=evaluation.loss,
            perplexity=evaluation.perplexity, num_targets=evaluation.num_targets,
        )  # fmt: skip
        if self.is_main:
            self.boards.log_evaluation(step, evaluation)
        self.console.say(
            f"validation after step {step}: loss {evaluation.loss:.4f}, "
            f"perplexity {evaluation.perplexity:.2f}"
        )

    def event(self, name: str, **fields: Any) -> None:
        """Add a line to events.jsonl."""
        if self.is_main:
            self.directory.append_event(name, **fields)


class TrainLoop:
    """Runs a job from a state to its budget's end, a stop signal, or the guard's last word.

    Args:
        plan: what is done when.
        context: what a step works with.
        loader: gives this process's micro-batches by sample number.
        validation: this process's micro-batches of every validation; empty for none.
        learning_rate: the rate of the step that brings the run to so many tokens.
        store: where checkpoints go.
        make_record: the JSON record of a checkpoint for a state.
        control: agrees on requests between processes.
        stop: notes signals.
        faults: rehearsed failures.
        outlets: where figures go.
    """

    def __init__(
        self,
        plan: Plan,
        context: StepContext,
        loader: Loader,
        validation: Sequence[Batch],
        learning_rate: Callable[[int], float],
        store: CheckpointStore,
        make_record: Callable[[TrainState], dict[str, Any]],
        control: ControlLine,
        stop: StopSignal,
        faults: FaultInjector,
        outlets: Outlets,
    ) -> None:
        self.plan = plan
        self.context = context
        self.loader = loader
        self.validation = validation
        self.learning_rate = learning_rate
        self.store = store
        self.make_record = make_record
        self.control = control
        self.stop = stop
        self.faults = faults
        self.outlets = outlets
        self.readback = Readback()
        self.save_timer = Timer(plan.save_every)
        self.evaluate_timer = Timer(plan.evaluate_every)
        self._seconds: list[float] = []
        self._num_consecutive_skips = 0
        self._evaluation: Evaluation | None = None
        self._evaluated_step: int | None = None
        self._saved_step: int | None = None

    def run(self, state: TrainState) -> Outcome:
        """Train from `state`; the last step reached is saved before this returns."""
        if state.step == 0:
            self._evaluate(state)
        code, reason = ExitCode.DONE, "the token budget is used up"
        remaining = (self.plan.num_steps - state.step) * self.plan.global_batch_size
        self.readback.restart_clock()
        # One rank's data may fail: all know it a step before, and save what they have.
        batches = Lookahead(
            self.loader.iterate(state.cursor, state.cursor + remaining), STEPS_TO_AGREE + 1
        )
        self.control.raise_together(batches.error)
        for micro_batches in batches:
            before, state = state, self._step(state, micro_batches)
            requests = self._agree(before, state, data_fails=batches.error is not None)
            if any(requests):
                self._log(self.readback.drain())
            if self._num_consecutive_skips >= self.plan.max_consecutive_skips:
                code, reason = ExitCode.STOPPED_BY_GUARD, self._skip_report()
                break
            if requests.evaluate:
                self._evaluate(state)
            if requests.save or requests.stop:
                self._save(state)
            if requests.stop:
                code, reason = ExitCode.PREEMPTED, f"stopped by {self.stop.received or 'a peer'}"
                break
            if requests.fail:
                self._finish(ExitCode.BAD_INPUT, "the data can't be read", state)
                self.control.raise_together(batches.error)
            self._report_save(self.store.poll())
        return self._finish(code, reason, state)

    def _step(self, state: TrainState, micro_batches: Sequence[Batch]) -> TrainState:
        after = state.after(self.plan.global_batch_size, self.plan.seq_len)
        self.faults.at("before-update", after.step)
        lr = self.learning_rate(after.tokens)
        result = train_step(self.context, micro_batches, lr)
        self._log(self.readback.push(after, lr, result))
        self.faults.at("after-update", after.step)
        return after

    def _agree(self, before: TrainState, after: TrainState, *, data_fails: bool) -> Requests:
        """What all processes do after this step: by the counters at once, by clock or signal as
        soon as all know of it."""
        wishes = Requests(
            stop=self.stop.received is not None,
            save=self.save_timer.is_due(),
            evaluate=self.evaluate_timer.is_due(),
            fail=data_fails,
        )
        agreed = self.control.exchange(wishes)
        return Requests(
            stop=agreed.stop,
            save=agreed.save or crossed(self.plan.save_every, before, after),
            evaluate=agreed.evaluate or crossed(self.plan.evaluate_every, before, after),
            fail=agreed.fail,
        )

    def _log(self, figures: StepFigures | None) -> None:
        if figures is None:
            return
        self._seconds.append(figures.seconds)
        self._num_consecutive_skips = self._num_consecutive_skips + 1 if figures.skipped else 0
        if figures.skipped:
            self.outlets.event(
                "skipped_update", step=figures.state.step, loss=repr(figures.loss),
                grad_norm=repr(figures.grad_norm), loss_scale=figures.loss_scale,
            )  # fmt: skip
        if figures.state.step % self.plan.log_every == 0:
            self.outlets.step(figures)

    def _evaluate(self, state: TrainState) -> None:
        self.evaluate_timer.restart()
        if not self.validation:
            return
        self._evaluation = evaluate(self.context.engine, self.validation)
        self._evaluated_step = state.step
        self.outlets.evaluation(state.step, self._evaluation)
        self.readback.restart_clock()

    def _save(self, state: TrainState) -> None:
        """Begin a checkpoint; every verdict up to `state` has been read."""
        self.save_timer.restart()
        self._report_save(self.store.wait())
        self.store.save(state.step, self.context.engine.state(), self.make_record(state))
        self._saved_step = state.step
        self.readback.restart_clock()

    def _report_save(self, outcome: SaveOutcome | None) -> None:
        if outcome is None:
            return
        if outcome.error is not None:
            self.outlets.event("checkpoint_failed", step=outcome.step, error=outcome.error)
            self.outlets.console.say(
                f"checkpoint of step {outcome.step} FAILED: {outcome.error}; "
                "training goes on, the last good checkpoint stays"
            )
            return
        self.outlets.event(
            "checkpoint", step=outcome.step, seconds=outcome.seconds, bytes=outcome.num_bytes
        )

    def _skip_report(self) -> str:
        return (
            f"{self._num_consecutive_skips} updates in a row had a non-finite loss or gradient: "
            "the weights are those of the last accepted update"
        )

    def _finish(self, code: ExitCode, reason: str, state: TrainState) -> Outcome:
        """Log what is left, validate once more, save, and wait for the file system."""
        self._log(self.readback.drain())
        if code is ExitCode.DONE and self._evaluated_step != state.step:
            self._evaluate(state)
        if code is not ExitCode.STOPPED_BY_GUARD and self._saved_step != state.step:
            self._save(state)
        last = self.store.wait()
        self._report_save(last)
        if last is not None and last.error is not None and code is not ExitCode.STOPPED_BY_GUARD:
            code, reason = ExitCode.FAILED, f"the last checkpoint could not be saved: {last.error}"
        return Outcome(code, reason, state, self._evaluation, self._rate())

    def _rate(self) -> float:
        """Tokens per second in the median step."""
        if not self._seconds:
            return 0.0
        median = sorted(self._seconds)[len(self._seconds) // 2]
        return self.plan.global_batch_size * self.plan.seq_len / max(median, 1e-9)
