"""Layers with experts in every layout against one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from expert_worlds import DEEPSEEK, EXPERTS, plain_expert_run, sparse_model
from fleet import run_fleet
from parity import CAN_SPLIT_BACKWARD, TOLERANCE
from relay import check_relay
from worlds import (
    Case,
    Difference,
    compiled_runs,
    difference,
    engine_runs,
    furthest,
    merged,
)

ZBV = "zbv-zero-bubble" if CAN_SPLIT_BACKWARD else "interleaved-1f1b"
"""A schedule with split backward passes, where there are such."""
JOBS: dict[str, tuple[int, dict[str, Any], list[dict[str, Any]]]] = {
    "1 process": (1, EXPERTS, [{}, {"activation_checkpointing": "full"}]),
    "2 processes": (
        2, EXPERTS,
        [
            {"zero_stage": 3, "activation_checkpointing": "selective"},
            {"tensor": 2, "sequence_parallel": False},
            {"expert": 2, "zero_stage": 0},
            {"expert": 2, "zero_stage": 2, "activation_checkpointing": "selective"},
        ],
    ),
    "4 processes": (
        4, DEEPSEEK,
        [
            {"expert": 2, "zero_stage": 2},
            {"expert": 2, "replicate": 2, "zero_stage": 3},
            {"expert": 2, "tensor": 2, "zero_stage": 3, "activation_checkpointing": "full"},
            {"expert": 2, "pipeline": 2, "pipeline_schedule": ZBV, "zero_stage": 3},
        ],
    ),
}  # fmt: skip


def measure(
    num_processes: int, model: dict[str, Any], layouts: list[dict[str, Any]], **changes: Any
) -> list[Difference]:
    """How far each layout is from a plain loop over the model on one process."""
    [expected] = run_fleet(1, plain_expert_run, Case(model=model, **changes))
    cases = [Case(model=model, parallel=parallel, **changes) for parallel in layouts]
    runs = run_fleet(num_processes, engine_runs, cases, timeout=900)
    return [difference(merged([run[n] for run in runs]), expected) for n in range(len(cases))]


@pytest.mark.parametrize("job", JOBS)
def test_layouts_agree_with_one_process(job: str) -> None:
    num_processes, experts, layouts = JOBS[job]
    model = sparse_model(experts, tie_embeddings=num_processes == 4)
    found = measure(num_processes, model, layouts, num_steps=5)
    for layout, each in zip(layouts, found, strict=True):
        assert each.worst <= TOLERANCE, (layout, each)


def test_compiled_and_in_bf16() -> None:
    """bf16 to a percent, for it keeps eight bits, and a rounded score may choose another expert."""
    layout = {"expert": 2, "zero_stage": 2, "activation_checkpointing": "full"}
    model = sparse_model(EXPERTS, num_layers=2)
    compiled = Case(model=model, parallel=layout | {"compile": True}, num_steps=3)
    halved = replace(compiled, parallel=layout, precision={"compute": "bf16"})
    [expected] = run_fleet(1, plain_expert_run, replace(compiled, parallel={}))
    runs = run_fleet(2, compiled_runs, [compiled, halved], timeout=400)
    found, rounded = (merged([run[n] for run in runs]) for n in range(2))
    assert difference(found, expected).worst <= TOLERANCE
    assert 1e-6 < furthest(rounded.losses, expected.losses) < 1e-2


def test_a_run_goes_on_with_other_degrees_of_expert_parallelism(tmp_path: Path) -> None:
    """Weights, moments and the routers' own state come back bitwise."""
    model = sparse_model(DEEPSEEK | {"batch_loss": 0.05}, num_layers=2)
    legs: list[tuple[int, dict[str, Any]]] = [
        (2, {"expert": 2, "zero_stage": 2}),
        (4, {"expert": 2, "tensor": 2}),
        (1, {}),
    ]
    check_relay(
        tmp_path, [(n, Case(model=model, parallel=layout)) for n, layout in legs], plain_expert_run
    )


@pytest.mark.grid
@pytest.mark.parametrize("expert", [1, 2, 4])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_grid(expert: int, tensor: int, pipeline: int) -> None:
    num_processes = expert * tensor * pipeline
    num_processes *= 2 if 2 * num_processes <= 8 else 1
    if num_processes > 8:
        pytest.skip("more processes than this")
    layouts: list[dict[str, Any]] = [
        {"expert": expert, "tensor": tensor, "pipeline": pipeline, "zero_stage": stage}
        for stage in range(4)
    ]
    num_shards = num_processes // tensor // pipeline
    if num_shards % (2 * expert) == 0:
        layouts += [layouts[stage] | {"replicate": 2} for stage in (1, 3)]
    if pipeline == 2:
        names = ["gpipe", "interleaved-1f1b"] + [ZBV, "dualpipe-v"] * CAN_SPLIT_BACKWARD
        layouts += [layouts[stage] | {"pipeline_schedule": n} for n in names for stage in (1, 3)]
    # DualPipeV wants a micro-batch for each of its four stages, two on each of two ranks.
    rows = {"global_batch_size": max(8, 4 * num_shards), "num_steps": 2}
    for experts in (EXPERTS, DEEPSEEK):
        found = measure(num_processes, sparse_model(experts), layouts, **rows)
        for layout, each in zip(layouts, found, strict=True):
            assert each.worst <= TOLERANCE, (layout, each)
