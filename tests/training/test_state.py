"""Counters and what recurs with them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triax.common.quantities import Duration, Unit
from triax.training.stability.control import Timer
from triax.training.step.state import TrainState, crossed


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 400), st.sampled_from(list(Unit)[:2]))
def test_what_recurs_does_so_once_a_period(
    num_steps: int, num_sequences: int, period: int, unit: Unit
) -> None:
    every, state, times = Duration(period, unit), TrainState(), 0
    for _ in range(num_steps):
        after = state.after(num_sequences, seq_len=7)
        times += crossed(every, state, after)
        state = after
    total = state.step if unit is Unit.STEPS else state.tokens
    longest = 1 if unit is Unit.STEPS else num_sequences * 7
    if period >= longest:
        assert times == total // period
    else:
        assert times == num_steps
    assert (state.step, state.cursor) == (num_steps, num_steps * num_sequences)


def test_nothing_recurs_by_time_without_agreement() -> None:
    state = TrainState()
    assert not crossed(Duration(1, Unit.SECONDS), state, state.after(1, 1))
    assert not crossed(None, state, state.after(1, 1))


def test_a_timer_is_due_after_its_span_and_again_after_a_restart() -> None:
    now = [0.0]
    timer = Timer(Duration(10, Unit.SECONDS), clock=lambda: now[0])
    assert not timer.is_due()
    now[0] = 10.0
    assert timer.is_due()
    timer.restart()
    assert not timer.is_due()
    assert not Timer(Duration(10, Unit.STEPS), clock=lambda: now[0]).is_due()
