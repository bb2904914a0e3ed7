"""Tensor, pipeline and data parallelism together, against a plain loop on one process."""

from __future__ import annotations

import pytest
from parity import DEEP, TOLERANCE, WIDE, label, measure

from triax.parallel.stages import SCHEDULES

TENSOR = [
    (2, {"tensor": 2, "zero_stage": 1}),
    (2, {"tensor": 2, "zero_stage": 1, "sequence_parallel": False}),
    (4, {"tensor": 4, "zero_stage": 0}),
    (4, {"tensor": 2, "zero_stage": 0}),
    (4, {"tensor": 2, "zero_stage": 2, "activation_checkpointing": "selective"}),
    (4, {"tensor": 2, "zero_stage": 3}),
    (8, {"tensor": 2, "zero_stage": 3, "replicate": 2}),
]


@pytest.mark.parametrize(("num_processes", "parallel"), TENSOR, ids=label)
def test_tensor_and_data_parallel(num_processes: int, parallel: dict[str, object]) -> None:
    tied, is_wide = parallel["zero_stage"] == 3, parallel["tensor"] == 4
    found = measure(
        num_processes,
        parallel,
        tied=tied,
        model=WIDE if is_wide else {},
        micro_batch_size=4 if is_wide else 2,
    )
    assert found.worst <= TOLERANCE, found


@pytest.mark.parametrize(
    ("schedule", "zero_stage"),
    [
        (schedule, zero_stage)
        for number, schedule in enumerate(SCHEDULES)
        for zero_stage in (1 + number % 2, 3)
    ],
)
def test_every_schedule_with_zero_stages(schedule: str, zero_stage: int) -> None:
    """Stages 1 and 2, tied and untied by turns; `pytest -m grid` has all of each."""
    parallel = {"pipeline": 2, "pipeline_schedule": schedule, "zero_stage": zero_stage}
    found = measure(4, parallel, tied=(list(SCHEDULES).index(schedule) + zero_stage) % 2 == 0)
    assert found.worst <= TOLERANCE, found


MIXED = [
    (4, {"pipeline": 2, "tensor": 2, "pipeline_schedule": "1f1b", "zero_stage": 0}),
    (4, {"pipeline": 2, "tensor": 2, "pipeline_schedule": "zbv-zero-bubble", "zero_stage": 3}),
    (4, {"pipeline": 4, "pipeline_schedule": "1f1b", "zero_stage": 1}),
    (4, {"pipeline": 4, "pipeline_schedule": "dualpipe-v", "zero_stage": 1}),
    (8, {"pipeline": 2, "replicate": 2, "pipeline_schedule": "gpipe", "zero_stage": 3}),
    (4, {"pipeline": 2, "pipeline_split": (3, 5), "activation_checkpointing": "selective"}),
    (4, {"pipeline": 2, "pipeline_schedule": "zbv-zero-bubble",
         "activation_checkpointing": "full", "zero_stage": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("num_processes", "parallel"), MIXED, ids=label)
def test_all_axes_together(num_processes: int, parallel: dict[str, object]) -> None:
    found = measure(
        num_processes,
        parallel,
        tied=parallel["pipeline"] == 2,
        model=DEEP if parallel["pipeline"] == 4 or "pipeline_split" in parallel else {},
    )
    assert found.worst <= TOLERANCE, found
