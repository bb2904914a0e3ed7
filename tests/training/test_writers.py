"""What TensorBoard shows of a run that goes back."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from triax.training.records.boards import TensorBoard
from triax.training.records.metrics import MetricsWriters


def shown(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_steps_that_are_taken_again_replace_the_former_ones(tmp_path: Path) -> None:
    with MetricsWriters([TensorBoard(tmp_path, next_step=1)]) as writers:
        for step in range(1, 6):
            writers.log_row({"step": step, "loss": 1.0})
        writers.rewind(3)
        writers.log_row({"step": 3, "loss": 2.0})
    assert shown(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]
    with MetricsWriters([TensorBoard(tmp_path, next_step=2)]) as writers:
        writers.log_row({"step": 2, "loss": 4.0})
    assert shown(tmp_path) == [(1, 1.0), (2, 4.0)]
