"""Rehearsals and forecasts against real steps among real processes, on both engines.

What a process sends is compared in order, what it holds at every peak of a rehearsal by part, and
to the byte; weights, main params, gradients and moments with the planner's, and its messages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from fleet import run_fleet
from measured import ADAPTERS, DEEP, EVEN, GPT2, TIED, case, differences, grid
from parity import skip_unless_torch_can
from rehearsed import both
from worlds import Case


def check(world_size: int, cases: Sequence[Case], ranks: Collection[int]) -> None:
    """Take all steps in one job, and rehearse them on some of its processes; nothing may differ."""
    found = run_fleet(world_size, both, cases, ranks, timeout=900)
    problems = [
        problem
        for rank, of_rank in enumerate(found)
        for job, one in zip(cases, of_rank, strict=True)
        for problem in differences(world_size, job, rank, one)
    ]
    assert not problems, "\n".join(problems)


def test_rehearsals_and_forecasts_are_what_four_processes_do() -> None:
    cases = [
        case({"zero_stage": 3, "replicate": 2}),
        case({"zero_stage": 1, "tensor": 2, "activation_checkpointing": "selective"}),
        case({"zero_stage": 2, "tensor": 2, "activation_checkpointing": "full"}, model=GPT2),
        case({"pipeline": 2, "pipeline_schedule": "interleaved-1f1b"}, model=DEEP),
        case({"zero_stage": 0, "pipeline": 2}, model=TIED, compute="fp32"),
        case({"zero_stage": 3, "expert": 2, "tensor": 2}, model={"experts": EVEN}),
        case({"zero_stage": 2, "tensor": 2}, model=ADAPTERS),
        case({"zero_stage": 1, "context": 2, "context_method": "ring"}),
        case({"engine": "deepspeed", "zero_stage": 2, "tensor": 2}),
    ]
    check(4, cases, ranks={3})


@pytest.mark.grid
@pytest.mark.parametrize("name", grid())
def test_every_layout_is_what_it_is_rehearsed_and_forecast_to_be(name: str) -> None:
    world_size, cases = grid()[name]
    for job in cases:
        skip_unless_torch_can(job.parallel.get("pipeline_schedule", "1f1b"))
    check(world_size, cases, range(world_size))
