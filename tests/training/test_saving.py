"""Failed saves are told, tried again ever later, and stop the run by its policy alone."""

from __future__ import annotations

import errno
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from triax.checkpoint.store import SaveOutcome
from triax.training.records.console import Console
from triax.training.records.metrics import MetricsWriters
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.run_directory import RunDirectory
from triax.training.records.saving import Saver
from triax.training.step.state import TrainState


class FakeStore:
    """Ends each save as planned, at once."""

    def __init__(self, *errors: str | None) -> None:
        self.errors = deque(errors)
        self.outcomes: deque[SaveOutcome] = deque()

    def save(self, step: int, _tensors: object, _record: object) -> None:
        self.outcomes.append(SaveOutcome(step, 0.1, 1, self.errors.popleft()))

    def poll(self) -> SaveOutcome | None:
        return self.outcomes.popleft() if self.outcomes else None

    wait = poll


class FakeEngine:
    def __init__(self, **state: torch.Tensor) -> None:
        self._state = state

    def state(self) -> dict[str, Any]:
        return {f"model.{name}": tensor for name, tensor in self._state.items()}


def metrics_logger(tmp_path: Path) -> MetricsLogger:
    console = Console(10, 0, 1, enabled=False)
    return MetricsLogger(
        True, RunDirectory(tmp_path), MetricsWriters([]), console, lambda _: {"step": 1}
    )


def saver(
    store: FakeStore, tmp_path: Path, now: list[float], engine: FakeEngine | None = None,
    **options: Any,
) -> Saver:  # fmt: skip
    return Saver(
        store, engine or FakeEngine(), lambda _: {}, metrics_logger(tmp_path),  # type: ignore[arg-type]
        **({"retry_seconds": 10.0, "max_failures": 3} | options), clock=lambda: now[0],
    )  # fmt: skip


def test_retries_come_ever_later_and_end_with_success(tmp_path: Path) -> None:
    now = [0.0]
    made = saver(FakeStore("full", "full", None), tmp_path, now)
    assert not made.wants_retry()
    for wait in (10.0, 20.0):
        made.save(TrainState(5))
        made.poll()
        now[0] += wait - 0.1
        assert made.waits_to_retry() and not made.wants_retry()
        now[0] += 0.1
        assert made.wants_retry() and not made.waits_to_retry()
    made.save(TrainState(6))
    made.poll()
    assert not made.wants_retry() and made.num_failures == 0
    events = RunDirectory(tmp_path).rows(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["checkpoint_failed"] * 2 + ["checkpoint"]


def test_so_many_failures_in_a_row_and_it_gives_up(tmp_path: Path) -> None:
    made = saver(FakeStore("a", "b", "c"), tmp_path, [0.0])
    for expected in (False, False, True):
        made.save(TrainState(5))
        made.poll()
        assert made.has_given_up == expected


def test_however_many_failures_the_next_attempt_comes_within_half_an_hour(tmp_path: Path) -> None:
    """A disk may be full for months: 2 ** 1024 seconds are more than a float holds."""
    now = [0.0]
    made = saver(FakeStore("full"), tmp_path, now, max_failures=10**18)
    made.num_failures = 2000
    made.save(TrainState(5))
    made.poll()
    now[0] += 1800
    assert made.wants_retry()


def test_the_last_save_is_tried_several_times(tmp_path: Path) -> None:
    made = saver(FakeStore("a", "b", None), tmp_path, [0.0], retry_seconds=0.001)
    assert made.save_at_last(TrainState(5)) is None
    assert made.saved_step == 5
    made = saver(FakeStore("a", "b", "c"), tmp_path, [0.0], retry_seconds=0.001)
    assert made.save_at_last(TrainState(5)) == "c"
    assert made.saved_step is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_never_reach_the_store(tmp_path: Path, value: float) -> None:
    weights = torch.zeros(3, 4)
    store = FakeStore(None)
    made = saver(store, tmp_path, [0.0], FakeEngine(good=torch.ones(2), bad=weights))
    weights[1, 2] = value
    assert "bad on rank 0" in str(made.save(TrainState(5)))
    assert "not finite" in str(made.save_at_last(TrainState(5)))
    assert made.refused_step == 5 and made.num_failures == 0 and not store.outcomes
    events = RunDirectory(tmp_path).rows(tmp_path / "events.jsonl")
    assert [(event["event"], event["step"]) for event in events] == [("checkpoint_refused", 5)]
    weights.zero_()
    assert made.save_at_last(TrainState(6)) is None and made.saved_step == 6


def test_a_full_disk_takes_figures_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunDirectory, "_append", full)
    made = metrics_logger(tmp_path)
    made.event("anything", step=1)
    made.abandon(3)
    assert not (tmp_path / "events.jsonl").exists()
