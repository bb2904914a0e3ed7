"""The training loop: batch, step, figures, and now and then a validation or a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from triax.common.errors import ExitCode
from triax.common.quantities import Duration
from triax.data.read.loader import Loader
from triax.models.batch import Batch
from triax.training.evaluation.evaluator import Evaluator, Findings
from triax.training.evaluation.time_share import TimeShare
from triax.training.loop.garbage import GarbageControl
from triax.training.loop.intervals import LearningTimer
from triax.training.loop.lookahead import Lookahead
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.saving import Saver
from triax.training.stability.control import STEPS_TO_AGREE, Requests, Timer
from triax.training.stability.monitor import Monitor
from triax.training.stability.recovery import Ending
from triax.training.step.readback import Readback, StepFigures
from triax.training.step.state import TrainState, crossed
from triax.training.step.step import StepContext, train_step


@dataclass(frozen=True)
class Plan:
    """What the loop does when; all of it known before the first step."""

    num_steps: int
    global_batch_size: int
    seq_len: int
    learning_rate: Callable[[int], float]
    """The rate of the step that brings the run to so many tokens."""
    save_every: Duration | None
    """None also where the interval is learnt."""
    evaluate_every: Duration | None
    log_every: int
    collect_garbage_every: int | None = None
    seconds_between_failures: float | None = None
    """Mean of the job's; None where saves come at a fixed interval."""
    started: float = 0.0
    """When this session's process began, in seconds since 1970."""
    evaluation_share: float | None = None
    """The most of the session's time that evaluations take; None for as much as they need."""


@dataclass(frozen=True)
class RunData:
    """This process's part of what a run reads."""

    loader: Loader
    """Gives micro-batches by sample number."""
    evaluator: Evaluator
    """What is evaluated now and then; false for nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a run's loop ended."""

    code: ExitCode
    reason: str
    state: TrainState
    evaluation: Findings | None
    """The last one's."""
    tokens_per_second: float
    """Median over the steps of this session."""
    num_judged: int = 0
    """Updates that the guard has judged in the whole run, those that were rolled back too."""
    num_refused: int = 0
    """Those of them that it refused."""


class TrainLoop:
    """Runs a job from a state to its budget's end, a stop signal, or the guard's last word.

    Args:
        plan: what is done when.
        data: what is read.
        context: the engine, and what else a step works with.
        saver: writes checkpoints.
        monitor: what is done about steps, processes and machines that go wrong.
        metrics_logger: where figures go.
    """

    def __init__(
        self,
        plan: Plan,
        data: RunData,
        context: StepContext,
        saver: Saver,
        monitor: Monitor,
        metrics_logger: MetricsLogger,
    ) -> None:
        self.plan = plan
        self.data = data
        self.context = context
        self.saver = saver
        self.monitor = monitor
        self.escalation = monitor.escalation
        self.recovery = monitor.recovery
        self.control = monitor.control
        self.stop = monitor.stop
        self.metrics_logger = metrics_logger
        self.readback = Readback()
        self.garbage = GarbageControl(plan.collect_garbage_every)
        self.save_timer: Timer | LearningTimer = Timer(plan.save_every)
        if plan.seconds_between_failures is not None:
            self.save_timer = LearningTimer(plan.seconds_between_failures)
        self._ready_after = 0.0
        self.evaluate_timer = Timer(plan.evaluate_every)
        self.evaluating = TimeShare(plan.evaluation_share)
        self._seconds: list[float] = []
        self._evaluation: Findings | None = None
        self._evaluated_step: int | None = None
        self._evaluation_is_postponed = False
        self._save_is_postponed = False
        self._data_error: Exception | None = None

    def run(self, state: TrainState) -> Outcome:
        """Train from `state`; the last step reached is saved before this returns."""
        self._ready_after = time.time() - self.plan.started
        with self.garbage, closing(self.monitor.profiling):
            return self._run(state)

    def _run(self, state: TrainState) -> Outcome:
        if state.step == 0:
            self._evaluate(state)
        ending: Ending | None = None
        while ending is None and state.step < self.plan.num_steps:
            state, ending = self._run_on(state)
        outcome = self._finish(ending, state)
        if outcome.code is ExitCode.BAD_INPUT:
            self.control.raise_together(self._data_error)
        return outcome

    def _run_on(self, state: TrainState) -> tuple[TrainState, Ending | None]:
        """Steps up to the budget's end, an ending, or a jump in the data."""
        remaining = (self.plan.num_steps - state.step) * self.plan.global_batch_size
        read = self.data.loader.iterate(state.cursor, state.cursor + remaining)
        self.readback.restart_clock()
        self.monitor.between_steps(state.step + 1)
        with closing(read):
            # One rank's data may fail: all know it a step before, and save what they have.
            batches = Lookahead(read, STEPS_TO_AGREE + 1)
            self.control.raise_together(batches.error)
            for micro_batches in batches:
                before, state = state, self._step(state, micro_batches)
                self.garbage.after_step(state.step)
                self._data_error = batches.error
                requests = self._agree(before, state)
                if any(requests):
                    self._log(self.readback.drain())
                if (action := self.escalation.due(state.step)) is not None:
                    self._log(self.readback.drain())
                    self.monitor.beat("recovering", state.step)
                    return self.recovery.act(action, state)
                if (ending := self._tend(requests, state)) is not None:
                    return state, ending
                self.monitor.between_steps(state.step + 1)
        return state, None

    def _begin_phase(self, state: TrainState) -> None:
        """Other data, or sequences of another length, begins, and moves the loss by design."""
        self._log(self.readback.drain())
        self.context.guard.forget()
        self.escalation.accepted_new_level()
        self.metrics_logger.event("phase", step=state.step, cursor=state.cursor)
        self.metrics_logger.say(
            f"after step {state.step} another phase of the data begins, and the guard anew"
        )

    def _step(self, state: TrainState, micro_batches: Sequence[Batch]) -> TrainState:
        if self.data.loader.changes_at(state.cursor):
            self._begin_phase(state)
        after = state.after(self.plan.global_batch_size, self.plan.seq_len)
        self.monitor.before_step(after, self.plan.global_batch_size)
        lr = self.plan.learning_rate(after.tokens) * self.escalation.lr_factor(after.step)
        result = train_step(self.context, micro_batches, lr)
        self._log(self.readback.push(state.cursor, after, lr, result))
        self.monitor.after_step(after)
        return after

    def _agree(self, before: TrainState, after: TrainState) -> Requests:
        """What all processes do after this step: by the counters at once, by clock or signal as
        soon as all know of it."""
        wishes = Requests(
            stop=self.stop.received is not None,
            save=self.save_timer.is_due(),
            evaluate=self.evaluate_timer.is_due(),
            fail=self._data_error is not None,
            give_up=self.saver.has_given_up,
            retry=self.saver.wants_retry(),
            hold=self.saver.waits_to_retry(),
            overspent=self.evaluating.is_overspent,
        )
        agreed = self.control.exchange(wishes)
        is_save_due = (
            agreed.save or self._save_is_postponed or crossed(self.plan.save_every, before, after)
        )
        is_evaluation_due = (
            agreed.evaluate
            or self._evaluation_is_postponed
            or crossed(self.plan.evaluate_every, before, after)
        )
        self._evaluation_is_postponed = is_evaluation_due and agreed.overspent
        return agreed._replace(
            save=agreed.retry or (is_save_due and not agreed.hold),
            evaluate=is_evaluation_due and not agreed.overspent,
            retry=False,
            hold=False,
            overspent=False,
        )

    def _tend(self, requests: Requests, state: TrainState) -> Ending | None:
        """What is due between two steps."""
        if (corruption := self.monitor.look_for_corruption(state)) is not None:
            return self.recovery.stop(corruption, state)
        if requests.evaluate:
            self._evaluate(state)
        # Saved now, a run in trouble would push out the checkpoints from before the trouble.
        self._save_is_postponed = requests.save and self.escalation.is_refusing
        if requests.stop or (requests.save and not self._save_is_postponed):
            self._save(state)
        if requests.stop:
            return Ending(ExitCode.PREEMPTED, f"stopped by {self.stop.received or 'a peer'}")
        if requests.fail:
            return Ending(ExitCode.BAD_INPUT, "the data can't be read")
        if requests.give_up:
            return Ending(
                ExitCode.FAILED, f"{self.saver.num_failures} checkpoints in a row were not saved"
            )
        self.saver.poll()
        return None

    def _log(self, figures: StepFigures | None) -> None:
        if figures is None:
            return
        self._seconds.append(figures.seconds)
        self.monitor.observe(figures)
        if figures.state.step % self.plan.log_every == 0:
            self.metrics_logger.step(figures)

    def _evaluate(self, state: TrainState) -> None:
        self.evaluate_timer.restart()
        self._evaluation_is_postponed = False
        if not self.data.evaluator:
            return
        began = time.perf_counter()
        self.monitor.beat("evaluating", state.step)
        with self.evaluating:
            self._evaluation = self.data.evaluator.evaluate(self.context.engine)
        self._evaluated_step = state.step
        self.metrics_logger.evaluation(state.step, self._evaluation, self.evaluating.seconds)
        self._leave_out_since(began)

    def _save(self, state: TrainState) -> None:
        began = time.perf_counter()
        self.save_timer.restart()
        self.monitor.beat("saving", state.step)
        self.saver.save(state)
        self._learn_interval(time.perf_counter() - began)
        self._leave_out_since(began)

    def _learn_interval(self, seconds: float) -> None:
        """A save has held the steps up for so long."""
        if isinstance(self.save_timer, LearningTimer):
            news = self.save_timer.learn(seconds, self._ready_after)
            if news is not None:
                self.metrics_logger.say(news)

    def _leave_out_since(self, began: float) -> None:
        """Leave what came between two steps out of their times."""
        self.readback.restart_clock()
        self.monitor.leave_out(time.perf_counter() - began)

    def _finish(self, ending: Ending | None, state: TrainState) -> Outcome:
        """Log what is left, validate once more, save, and wait for the file system."""
        self._log(self.readback.drain())
        if ending is None and self.monitor.corruption is not None:
            ending = self.recovery.stop(self.monitor.corruption, state)
        if ending is None and self._evaluated_step != state.step:
            self._evaluate(state)
        self.monitor.beat("saving at last", state.step)
        self.saver.wait()
        final = ending or Ending(ExitCode.DONE, "the token budget is used up")
        trouble = self.escalation.trouble_at_the_end if ending is None else None
        if trouble is not None:
            final = self.recovery.stop(f"{final.reason}, but {trouble.reason}", state)
        is_wanted = final.code in (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.BAD_INPUT)
        # Weights that give nothing finite may be useless, and would push out good ones.
        is_wanted |= trouble is not None and not trouble.has_non_finite
        if is_wanted and self.saver.saved_step != state.step:
            final = self._save_last(final, state)
        return Outcome(
            final.code, final.reason, state, self._evaluation, self._rate(),
            self.escalation.num_judged, self.escalation.num_skips,
        )  # fmt: skip

    def _save_last(self, final: Ending, state: TrainState) -> Ending:
        """Save what was reached; returns the ending, or the one that it becomes by a failure."""
        error = self.saver.save_at_last(state)
        if error is None or final.code is ExitCode.BAD_INPUT:
            return final
        if self.saver.refused_step != state.step:
            return Ending(ExitCode.FAILED, f"the last checkpoint could not be saved: {error}")
        if final.code is ExitCode.DONE:
            return self.recovery.stop(f"{final.reason}, but {error}", state)
        return Ending(final.code, f"{final.reason}; its last step is not saved: {error}")

    def _rate(self) -> float:
        """Tokens per second in the median step."""
        if not self._seconds:
            return 0.0
        median = sorted(self._seconds)[len(self._seconds) // 2]
        return self.plan.global_batch_size * self.plan.seq_len / max(median, 1e-9)
