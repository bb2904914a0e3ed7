"""How often to save, and what that is worth."""

from __future__ import annotations

import pytest

from triax.checkpoint.config import CheckpointConfig
from triax.training.loop.intervals import LearningTimer, best_interval, effective_share

HOUR = 3600.0


@pytest.mark.parametrize(("save", "between"), [(1.0, 3 * HOUR), (5.0, 3 * HOUR), (300.0, HOUR)])
def test_no_other_interval_is_better(save: float, between: float) -> None:
    best = best_interval(save, between)
    share = effective_share(best, save, 600, between)
    others = [effective_share(best * factor, save, 600, between) for factor in (0.5, 0.8, 1.25, 2)]
    assert share > max(others)


def test_saves_dearer_than_failures_are_apart_come_no_more_often_than_these() -> None:
    assert best_interval(100.0, 40.0) == 40.0
    assert effective_share(40.0, 100.0, 1e9, 40.0) == pytest.approx(0.0)


def test_the_timer_learns_what_a_save_costs_and_says_so_once() -> None:
    now = [0.0]
    timer = LearningTimer(3 * HOUR, lambda: now[0])
    assert not timer.is_due()
    now[0] = timer.period
    assert timer.is_due()
    timer.restart()
    assert not timer.is_due()
    news = timer.learn(30.0, 600.0)
    assert news is not None and "a save costs 30.00 s" in news and "% of the time" in news
    assert timer.period == pytest.approx(best_interval(30.0, 3 * HOUR))
    assert timer.learn(31.0, 600.0) is None
    LearningTimer(1e9).learn(1e6, 0.0)
    assert LearningTimer(1e12).period == 600.0


def test_auto_is_a_value_of_the_key() -> None:
    assert CheckpointConfig.model_validate({"every": "auto"}).every == "auto"
    with pytest.raises(ValueError, match="every"):
        CheckpointConfig.model_validate({"every": "often"})
