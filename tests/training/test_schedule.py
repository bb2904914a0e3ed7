"""The learning rate as a function of tokens: its ends, its shape, its independence of steps."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from triax.common.quantities import Duration, Unit
from triax.training.config import ScheduleConfig
from triax.training.step.schedule import learning_rate, warmup_tokens

PEAK = 3e-4


def rates(schedule: ScheduleConfig, num_steps: int, per_step: int) -> list[float]:
    """The rate of each step of a run."""
    return [
        learning_rate(
            step * per_step,
            peak=PEAK,
            schedule=schedule,
            total_tokens=num_steps * per_step,
            tokens_per_step=per_step,
        )
        for step in range(1, num_steps + 1)
    ]


SCHEDULES = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.none()
    | st.builds(Duration, st.integers(1, 40), st.just(Unit.STEPS))
    | st.builds(Duration, st.integers(1, 4000), st.just(Unit.TOKENS)),
    decay_fraction=st.floats(0.01, 1.0),
    min_lr_ratio=st.floats(0.0, 1.0),
)
STEPS = st.integers(1, 80)
PROPERTY = settings(deadline=None)


@PROPERTY
@given(schedule=SCHEDULES, num_steps=STEPS, per_step=st.integers(1, 100))
def test_the_rate_rises_once_and_falls_once(
    schedule: ScheduleConfig, num_steps: int, per_step: int
) -> None:
    found = rates(schedule, num_steps, per_step)
    top = found.index(max(found))
    assert all(0 <= rate <= PEAK for rate in found)
    assert found[0] > 0 or (num_steps == 1 and schedule.min_lr_ratio == 0)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


@PROPERTY
@given(schedule=SCHEDULES, num_steps=STEPS, per_step=st.integers(1, 100))
def test_the_last_step_has_exactly_the_smallest_rate(
    schedule: ScheduleConfig, num_steps: int, per_step: int
) -> None:
    total = num_steps * per_step
    assume(warmup_tokens(schedule, total, per_step) < total)
    last = rates(schedule, num_steps, per_step)[-1]
    assert last == PEAK * (1.0 if schedule.kind == "constant" else schedule.min_lr_ratio)


@PROPERTY
@given(schedule=SCHEDULES, num_steps=STEPS, per_step=st.integers(1, 50))
def test_the_rate_depends_on_tokens_and_not_on_the_step_s_size(
    schedule: ScheduleConfig, num_steps: int, per_step: int
) -> None:
    assume(schedule.warmup is None or schedule.warmup.unit is Unit.TOKENS)
    fine = rates(schedule, 2 * num_steps, per_step)
    assert fine[1::2] == rates(schedule, num_steps, 2 * per_step)


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    schedule = ScheduleConfig(kind="constant", warmup=Duration(4, Unit.STEPS))
    assert rates(schedule, 6, 10) == pytest.approx(
        [PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK, PEAK], rel=1e-15
    )


def test_warmup_is_one_percent_by_default() -> None:
    assert warmup_tokens(ScheduleConfig(), total_tokens=5000, tokens_per_step=10) == 50
    found = rates(ScheduleConfig(kind="constant"), 500, 10)
    assert found[4] == PEAK
    assert found[3] < PEAK


def test_cosine_is_half_way_down_in_the_middle() -> None:
    schedule = ScheduleConfig(warmup=Duration(20, Unit.TOKENS), min_lr_ratio=0.2)
    found = rates(schedule, 12, 10)
    assert found[6] == pytest.approx(PEAK * 0.6, rel=1e-12)


def test_wsd_keeps_the_peak_until_the_decay_and_then_falls_linearly() -> None:
    schedule = ScheduleConfig(
        kind="wsd", warmup=Duration(1, Unit.STEPS), decay_fraction=0.4, min_lr_ratio=0.0
    )
    assert rates(schedule, 10, 7) == pytest.approx(
        [PEAK * ratio for ratio in (1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0)], abs=1e-18
    )
