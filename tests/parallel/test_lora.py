"""Adapters in every layout against one process, and what is kept of the weights beside them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from fleet import run_fleet
from lora_worlds import frozen_stay, held
from parity import TOLERANCE, WIDE, label, make_model, skip_unless_torch_can
from worlds import Case, Run, difference, engine_runs, merged

LORA = {"lora": {"rank": 4, "alpha": 8.0}}
ATTENTION = {"lora": {"rank": 4, "alpha": 8.0, "targets": ["query", "value"]}}
EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 32, "bias_rate": 0.01}
OF_TWO: list[dict[str, Any]] = [
    {"zero_stage": 3, "activation_checkpointing": "full"},
    {"zero_stage": 0},
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": False, "activation_checkpointing": "selective"},
    {"pipeline": 2, "pipeline_schedule": "1f1b"},
    {"pipeline": 2, "pipeline_schedule": "zbv-zero-bubble", "zero_stage": 0},
    {"context": 2, "zero_stage": 2},
]
OF_FOUR: list[dict[str, Any]] = [
    {"tensor": 2, "pipeline": 2, "pipeline_schedule": schedule, "zero_stage": stage}
    for schedule, stage in (
        ("gpipe", 1), ("interleaved-1f1b", 1), ("interleaved-zero-bubble", 1), ("dualpipe-v", 0),
    )
] + [
    {"tensor": 2, "zero_stage": 3},
    {"tensor": 2, "context": 2},
    {"zero_stage": 3, "replicate": 2},
    {"zero_stage": 2, "pipeline": 2, "pipeline_schedule": "interleaved-zero-bubble"},
    {"tensor": 4, "sequence_parallel": False},
]  # fmt: skip


@functools.cache
def alone(tied: bool, model: str = "") -> Run:
    [[run]] = run_fleet(1, engine_runs, [Case(model=of(tied, model), num_steps=4)])
    return run


def of(tied: bool, model: str = "") -> dict[str, Any]:
    if model == "experts":
        return make_model(tied) | ATTENTION | {"experts": EXPERTS}
    return make_model(tied, **(WIDE if model == "wide" else {})) | LORA


def compare(size: int, layouts: list[dict[str, Any]], *, tied: bool, model: str = "") -> None:
    cases = [Case(model=of(tied, model), parallel=layout, num_steps=4) for layout in layouts]
    by_rank = run_fleet(size, engine_runs, cases, timeout=400)
    for number, layout in enumerate(layouts):
        found = difference(merged([runs[number] for runs in by_rank]), alone(tied, model))
        assert found.worst < TOLERANCE, f"{layout}: {found}"


def test_layouts_of_two_processes() -> None:
    for layout in OF_TWO:
        skip_unless_torch_can(layout.get("pipeline_schedule", "1f1b"))
    compare(2, OF_TWO, tied=True)


def test_adapters_of_a_model_with_experts() -> None:
    """Its experts, their router and what that knows of its load stay as they are."""
    compare(2, [{"zero_stage": 2, "expert": 2}, {"tensor": 2}], tied=False, model="experts")


@pytest.mark.grid
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", OF_FOUR, ids=label)
def test_layouts_of_four_processes(layout: dict[str, Any], tied: bool) -> None:
    skip_unless_torch_can(layout.get("pipeline_schedule", "1f1b"))
    compare(4, [layout], tied=tied, model="wide")


@pytest.mark.parametrize(("size", "layout"), [(1, {}), (2, {"zero_stage": 3}), (2, {"tensor": 2})])
def test_only_factors_have_fp32_values_gradients_and_moments(
    size: int, layout: dict[str, Any]
) -> None:
    case = Case(model=of(True), parallel=layout, precision={"compute": "bf16"}, num_steps=2)
    for dtypes in run_fleet(size, held, case):
        assert dtypes.frozen == {torch.bfloat16}
        assert dtypes.trained == {torch.float32}
        assert dtypes.names == {"lora_a", "lora_b"}
        assert dtypes.of_state <= dtypes.names and dtypes.of_gradients == dtypes.names


@pytest.mark.parametrize("layout", [{}, pytest.param({"compile": True}, marks=pytest.mark.grid)])
def test_frozen_weights_stay_as_they_are(layout: dict[str, Any]) -> None:
    case = Case(model=of(True) | {"num_layers": 2}, parallel=layout, num_steps=2)
    [[run, unchanged]] = run_fleet(1, frozen_stay, case)
    assert unchanged
    [[plain]] = run_fleet(1, engine_runs, [Case(model=case.model, num_steps=2)])
    assert difference(run, plain).worst < TOLERANCE
