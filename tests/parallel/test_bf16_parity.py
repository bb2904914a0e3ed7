"""bf16 against fp32 to a stated tolerance, and the same in every layout."""

from __future__ import annotations

import functools

import pytest
from fleet import run_fleet
from parity import label, reference, skip_unless_torch_can
from worlds import Case, Run, engine_run, furthest, merged

TOLERANCE = 1e-2
"""Relative, of losses over ten steps: bf16 keeps eight bits, about 0.4% of a product."""

LAYOUT_TOLERANCE = 5e-3
"""Between layouts: sums in another order, rounded to bf16 where activations cross processes."""


@functools.cache
def one_process() -> Run:
    [run] = run_fleet(1, engine_run, Case(precision={"compute": "bf16"}))
    return run


def test_bf16_is_near_fp32_and_not_the_same() -> None:
    assert 1e-6 < furthest(one_process().losses, reference(False).losses) < TOLERANCE


@pytest.mark.parametrize(
    ("num_processes", "parallel"),
    [
        (1, {"zero_stage": 3}),  # FSDP2 instead of main params
        (2, {"zero_stage": 1}),
        (2, {"zero_stage": 3}),
        (2, {"tensor": 2}),
        (2, {"pipeline": 2}),
        (4, {"pipeline": 2, "pipeline_schedule": "zbv-zero-bubble", "zero_stage": 3}),
    ],
    ids=label,
)
def test_bf16_is_the_same_in_every_layout(num_processes: int, parallel: dict[str, object]) -> None:
    skip_unless_torch_can(str(parallel.get("pipeline_schedule", "1f1b")))
    case = Case(precision={"compute": "bf16"}, parallel=parallel)
    losses = merged(run_fleet(num_processes, engine_run, case)).losses
    assert furthest(losses, one_process().losses) < LAYOUT_TOLERANCE
