"""From refusals to rollbacks, new levels and the end: bounded, and the same after a resume."""

from __future__ import annotations

import json
from typing import Any

import pytest

from triax.training.stability.escalation import (
    Action,
    Escalation,
    NewLevel,
    Rollback,
    Stop,
)
from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Reason
from triax.training.step.readback import StepFigures
from triax.training.step.state import TrainState
from triax.training.step.step import StepResult

BATCH = 8
ACCEPTED = Reason(0)


def figures(
    step: int, reasons: Reason = ACCEPTED, score: float = 0.0, num_targets: float = 1.0
) -> StepFigures:
    state = TrainState(step, step * BATCH * 4, step * BATCH)
    result = StepResult(
        loss=3.0, grad_norm=1.0, num_targets=num_targets, total_weight=num_targets,
        skipped=float(bool(reasons)), loss_scale=1.0, reasons=float(reasons), loss_score=score,
        norm_score=0.0, drift_score=0.0, own_finite=1.0, own_fingerprint=0.0, data_differs=0.0,
        extra={},
    )  # fmt: skip
    return StepFigures((step - 1) * BATCH, state, lr=1.0, seconds=0.1, result=result)


def made(**config: Any) -> Escalation:
    defaults = {"max_consecutive_skips": 3, "max_rollbacks": 2, "rollback_margin": 5}
    return Escalation(StabilityConfig(**(defaults | config)))


def feed(
    escalation: Escalation, first: int, reasons: list[Reason], score: float = 20.0
) -> list[tuple[int, Action]]:
    """Steps from `first`, each told of one step late; returns what was due, and when."""
    found = []
    for step in range(first, first + len(reasons) + 1):
        if step > first:
            reason = reasons[step - 1 - first]
            escalation.observe(figures(step - 1, reason, score if reason else 0.0))
        if (action := escalation.due(step)) is not None:
            found.append((step, action))
            break
    return found


def test_a_few_skips_lead_to_nothing() -> None:
    escalation = made()
    pattern = [Reason.LOSS, Reason(0), Reason(0)] * 20
    assert feed(escalation, 1, pattern) == []
    assert (escalation.num_skips, escalation.num_judged) == (20, 60)


@pytest.mark.parametrize(
    ("pattern", "due_after"),
    [
        ([Reason.LOSS] * 7 + [ACCEPTED], 22),
        ([Reason.LOSS, ACCEPTED], 39),
        ([ACCEPTED, Reason.NON_FINITE, Reason.NORM], 30),
    ],
    ids=["one in eight accepted", "every other", "one in three"],
)
def test_a_run_that_accepts_a_step_now_and_then_is_rolled_back(
    pattern: list[Reason], due_after: int
) -> None:
    """Weights that hardly ever move are frozen, whatever is accepted in between."""
    escalation = made(max_consecutive_skips=20)
    feed(escalation, 1, [ACCEPTED] * 100)
    ((step, action),) = feed(escalation, 101, pattern * 20)
    first = 101 + pattern.index(next(reason for reason in pattern if reason))
    assert action == Rollback(began=first, before=first - 5)
    assert step == 101 + due_after
    assert f"20 of {step - first} updates" in escalation.trouble


def test_a_run_in_trouble_is_told_from_one_with_a_bad_batch() -> None:
    """Saved in trouble, the checkpoints from before it would be pushed out."""
    escalation = made(max_consecutive_skips=8)
    found = []
    for step, letter in enumerate("..r....rrr.r.r.......", start=1):
        reason = Reason.LOSS if letter == "r" else ACCEPTED
        escalation.observe(figures(step, reason))
        found.append(escalation.is_refusing)
    assert "".join(".x"[is_refusing] for is_refusing in found) == "..x....xxx.xxxxx....."


def test_a_batch_without_targets_neither_ends_trouble_nor_goes_on_with_it() -> None:
    escalation = made()
    feed(escalation, 1, [Reason.LOSS, Reason.LOSS])
    escalation.observe(figures(3, num_targets=0.0))
    assert [refusal.step for refusal in escalation.refusals] == [1, 2]


@pytest.mark.parametrize(
    ("reasons", "has_non_finite"),
    [
        ([Reason.LOSS, Reason.LOSS], None),
        ([Reason.LOSS] * 3, False),
        ([Reason.LOSS, Reason.NON_FINITE, Reason.NORM], True),
    ],
)
def test_a_budget_that_ends_in_refusals_is_trouble(
    reasons: list[Reason], has_non_finite: bool | None
) -> None:
    escalation = made(max_consecutive_skips=20)
    feed(escalation, 1, reasons)
    trouble = escalation.trouble_at_the_end
    assert (trouble and trouble.has_non_finite) == has_non_finite


def test_too_many_in_a_row_lead_back_to_before_the_trouble() -> None:
    escalation = made()
    for step in range(1, 50):
        escalation.observe(figures(step, score=0.5 if step < 45 else 6.0))
    ((step, action),) = feed(escalation, 50, [Reason.LOSS] * 3)
    assert step == 53
    assert action == Rollback(began=45, before=40)


def test_a_drift_began_half_a_window_earlier() -> None:
    escalation = made(window=32)
    for step in range(1, 50):
        escalation.observe(figures(step))
    ((_, action),) = feed(escalation, 50, [Reason.DRIFT] * 3)
    assert action == Rollback(began=50 - 16, before=50 - 16 - 5)


def test_rollbacks_are_bounded_and_then_the_run_stops() -> None:
    escalation = made()
    for number in (1, 2):
        ((_, action),) = feed(escalation, 100, [Reason.NON_FINITE] * 3)
        assert isinstance(action, Rollback)
        escalation.rolled_back(90, (720, 816 + number * 32))
        assert escalation.num_rollbacks == number
    ((_, action),) = feed(escalation, 91, [Reason.NON_FINITE] * 3)
    assert isinstance(action, Stop)
    assert escalation.skipped_ranges == ((720, 880),)


def test_no_rollbacks_allowed_means_stopping_at_once() -> None:
    ((_, action),) = feed(made(max_rollbacks=0), 10, [Reason.LOSS] * 3)
    assert isinstance(action, Stop)


@pytest.mark.parametrize(
    ("scores", "is_level"), [([20.0, 21.0, 20.5], True), ([9.0, 60.0, 300.0], False)]
)
def test_a_shift_of_level_is_told_from_spikes(scores: list[float], is_level: bool) -> None:
    escalation = made(on_shift="accept")
    feed(escalation, 10, [Reason.LOSS] * 3)
    assert not escalation.looks_like_new_level, "before a rollback nobody can know"
    escalation.rolled_back(5, (40, 104))
    for step, score in enumerate(scores, start=6):
        escalation.observe(figures(step, Reason.LOSS, score))
    assert escalation.looks_like_new_level == is_level
    action = escalation.due(9)
    assert isinstance(action, NewLevel if is_level else Rollback)


def test_a_step_accepted_after_the_rollback_is_no_new_level() -> None:
    escalation = made(on_shift="accept")
    escalation.rolled_back(5, (40, 104))
    escalation.observe(figures(6))
    ((_, action),) = feed(escalation, 7, [Reason.LOSS] * 3)
    assert isinstance(action, Rollback)


def test_the_learning_rate_is_lowered_for_a_while_if_asked() -> None:
    escalation = made(rollback_lr_factor=0.5, rollback_lr_steps=10)
    assert escalation.lr_factor(100) == 1.0
    escalation.rolled_back(90, (0, 8))
    assert [escalation.lr_factor(step) for step in (91, 100, 101)] == [0.5, 0.5, 1.0]
    plain = made()
    plain.rolled_back(90, (0, 8))
    assert plain.lr_factor(91) == 1.0


@pytest.mark.parametrize("at", range(12))
def test_a_resumed_run_decides_as_the_uninterrupted_one(at: int) -> None:
    """Also where the save has made the last verdict known a step early."""
    pattern = [Reason(0)] * 12
    # The first and the last are just near enough to be counted together.
    pattern[3], pattern[5], pattern[8] = Reason.LOSS, Reason.NORM, Reason.NON_FINITE
    expected = feed(made(), 1, pattern)
    escalation, found = made(), []
    told = 0
    for step in range(1, len(pattern) + 1):
        # A save reads the verdict of its own step at once, the others are read one step late.
        for number in range(told + 1, (step if step == at else step - 1) + 1):
            reason = pattern[number - 1]
            escalation.observe(figures(number, reason, 20.0 if reason else 0.0))
            told = number
        if step == at:
            resumed = made()
            resumed.load(json.loads(json.dumps(escalation.state())))
            escalation = resumed
        if (action := escalation.due(step)) is not None:
            found.append((step, action))
            break
    assert expected == [(10, Rollback(began=4, before=0))]
    assert found == expected


def test_a_record_from_before_refusals_were_counted_together_loads() -> None:
    escalation = made()
    feed(escalation, 1, [ACCEPTED] * 9)
    feed(escalation, 10, [Reason.LOSS] * 2)
    state = escalation.state()
    del state["num_judged"], state["last_step"]
    for refusal in state["refusals"]:
        del refusal["began"]
    older = made()
    older.load(json.loads(json.dumps(state)))
    assert older.state() == escalation.state()
