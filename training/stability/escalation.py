"""What follows when the guard keeps refusing: roll back, learn a new level, or stop.

All of it is arithmetic on figures that every process has, so every process decides the same. It
decides one step after the refusal that is one too many, whether or not a save or an evaluation
made the figures known earlier: a resumed run decides as the uninterrupted one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Reason
from triax.training.step.readback import StepFigures


@dataclass(frozen=True)
class Refusal:
    """One skipped update."""

    step: int
    first_sample: int
    last_sample: int
    loss: float
    grad_norm: float
    reasons: int
    score: float
    """The largest of the guard's scores."""
    began: int
    """The first suspicious step: the one after the last that was calm."""


@dataclass(frozen=True)
class Rollback:
    """Go to a checkpoint of a step before `before`, and jump the data to where it is now."""

    began: int
    """The first suspicious step."""
    before: int


@dataclass(frozen=True)
class NewLevel:
    """Forget the window: what is refused is how the data is from now on."""


@dataclass(frozen=True)
class Stop:
    """Nothing is left to try."""

    reason: str


Action = Rollback | NewLevel | Stop

_TROUBLE_AT_THE_END = 3
"""So many refusals in a row are more than a spike, and no step is left to tell."""


@dataclass(frozen=True)
class Trouble:
    """A budget that ran out while updates were refused."""

    reason: str
    has_non_finite: bool
    """Whether a refused step gave a loss or a gradient that wasn't finite."""


class Escalation:
    """Counts refusals and decides what follows; each step of the escalation is bounded.

    Too many are `max_consecutive_skips` within twice as many steps: a run that accepts one step
    now and then learns as little as one that accepts none.

    Args:
        config: the `[stability]` section.
    """

    def __init__(self, config: StabilityConfig) -> None:
        self._config = config
        self._span = 2 * config.max_consecutive_skips
        self.refusals: tuple[Refusal, ...] = ()
        """Those of late: within the steps that are counted together."""
        self.skipped_ranges: tuple[tuple[int, int], ...] = ()
        """Samples that rollbacks jumped over: first, and first after."""
        self.num_judged = 0
        """Steps told of in the whole run, those that were rolled back too."""
        self.num_skips = 0
        self.num_rollbacks = 0
        self._last_step = 0
        self._accepted_step = 0
        self._calm_step = 0
        self._has_accepted = True
        """Since the last rollback."""
        self._reduced_until = 0

    @property
    def is_refusing(self) -> bool:
        """Whether the run is in trouble: the last step told of was refused, or half of the last
        `max_consecutive_skips` were. If that stays, `due` is not far."""
        if not self.refusals:
            return False
        return self.refusals[-1].step == self._last_step or self._half_of_the_last_are_refused

    @property
    def _half_of_the_last_are_refused(self) -> bool:
        most = self._config.max_consecutive_skips
        recent = [refusal for refusal in self.refusals if refusal.step > self._last_step - most]
        return bool(recent) and 2 * len(recent) >= most

    @property
    def trouble(self) -> str:
        """The recent refusals in a clause."""
        count = len(self.refusals)
        span = self.refusals[-1].step - self.refusals[0].step + 1 if count else 0
        if span == count:
            return f"{count} updates in a row were refused"
        return f"{count} of {span} updates were refused"

    @property
    def trouble_at_the_end(self) -> Trouble | None:
        """What is wrong with a run that ends now, by its budget."""
        last = [refusal for refusal in self.refusals if refusal.step > self._accepted_step]
        if len(last) >= _TROUBLE_AT_THE_END:
            reason = f"its last {len(last)} updates were all refused"
        elif self._half_of_the_last_are_refused:
            reason = self.trouble
        else:
            return None
        has_non_finite = any(refusal.reasons & Reason.NON_FINITE for refusal in self.refusals)
        return Trouble(reason, has_non_finite)

    def lr_factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        return self._config.rollback_lr_factor if step <= self._reduced_until else 1.0

    def observe(self, figures: StepFigures) -> None:
        """Count a step whose verdict is known; in the order of steps."""
        result = figures.result
        if not (result.total_weight > 0 or figures.reasons):
            return  # nothing was trained: trouble neither goes on nor ends
        step = figures.state.step
        self._last_step = step
        self.num_judged += 1
        # One more than counts: what is decided for the step before must not change.
        self.refusals = tuple(r for r in self.refusals if r.step >= step - self._span)
        scores = (result.loss_score, result.norm_score, result.drift_score)
        if not figures.reasons:
            self._has_accepted, self._accepted_step = True, step
            if max(scores) < self._config.threshold / 2:
                self._calm_step = step
            return
        self.num_skips += 1
        refusal = Refusal(
            step, figures.first_sample, figures.state.cursor - 1, result.loss, result.grad_norm,
            int(figures.reasons), max(scores), self._calm_step + 1,
        )  # fmt: skip
        self.refusals = (*self.refusals, refusal)

    def due(self, step: int) -> Action | None:
        """What to do after `step`, which itself need not have been told of."""
        most = self._config.max_consecutive_skips
        known = [refusal for refusal in self.refusals if refusal.step < step][-most:]
        if len(known) < most or known[-1].step - known[0].step >= self._span:
            return None
        if self.looks_like_new_level and self._config.on_shift == "accept":
            return NewLevel()
        if self.num_rollbacks >= self._config.max_rollbacks:
            return Stop(self._last_word())
        began = self._began(known)
        return Rollback(began, max(0, began - self._config.rollback_margin))

    @property
    def looks_like_new_level(self) -> bool:
        """Whether the refused values are another level rather than spikes.

        Weights from before the trouble refuse every batch since the rollback, by about as much:
        then it is the data that has changed.
        """
        if self._has_accepted or not self.refusals:
            return False
        if any(refusal.reasons & Reason.NON_FINITE for refusal in self.refusals):
            return False
        scores = [refusal.score for refusal in self.refusals]
        quarters = statistics.quantiles(scores, n=4) if len(scores) > 1 else [scores[0]] * 3
        return quarters[2] - quarters[0] < statistics.median(scores) / 2

    def rolled_back(self, to_step: int, skipped: tuple[int, int]) -> None:
        """Note that the run is now at an earlier step, and which samples it will not see."""
        self.num_rollbacks += 1
        self.skipped_ranges = _merged((*self.skipped_ranges, skipped))
        self.refusals, self._has_accepted = (), False
        self._last_step = self._accepted_step = self._calm_step = to_step
        if self._config.rollback_lr_factor < 1:
            self._reduced_until = to_step + self._config.rollback_lr_steps

    def accepted_new_level(self) -> None:
        """Note that the guard has forgotten its window."""
        self.refusals, self._has_accepted = (), True

    def state(self) -> dict[str, Any]:
        """For the checkpoint's record."""
        return {
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "skipped_ranges": [list(span) for span in self.skipped_ranges],
            "num_judged": self.num_judged,
            "num_skips": self.num_skips,
            "num_rollbacks": self.num_rollbacks,
            "last_step": self._last_step,
            "accepted_step": self._accepted_step,
            "calm_step": self._calm_step,
            "has_accepted": self._has_accepted,
            "reduced_until": self._reduced_until,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; older ones held less, which follows from the rest."""
        calm = state["calm_step"]
        self.refusals = tuple(
            Refusal(**{"began": calm + 1} | refusal) for refusal in state["refusals"]
        )
        last_refused = self.refusals[-1].step if self.refusals else 0
        self._last_step = state.get("last_step", max(calm, last_refused))
        # Those that older versions kept came one after another.
        first_refused = self.refusals[0].step if self.refusals else self._last_step + 1
        self._accepted_step = state.get("accepted_step", first_refused - 1)
        self.skipped_ranges = tuple((first, end) for first, end in state["skipped_ranges"])
        self.num_judged = state.get("num_judged", self._last_step)
        self.num_skips = state["num_skips"]
        self.num_rollbacks = state["num_rollbacks"]
        self._calm_step = calm
        self._has_accepted = state["has_accepted"]
        self._reduced_until = state["reduced_until"]

    def _began(self, refusals: Sequence[Refusal]) -> int:
        """The first suspicious step of the trouble; a drift had begun about half a window before
        the median showed it."""
        began = min(refusals[0].began, refusals[0].step)
        if any(refusal.reasons & Reason.DRIFT for refusal in refusals):
            began -= self._config.window // 2
        return began

    def _last_word(self) -> str:
        text = self.trouble
        if self._config.max_rollbacks:
            text += f", and the run has rolled back {self._config.max_rollbacks} times already"
        return text


def _merged(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The ranges in order, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return tuple(merged)
