"""GPT-2 in many layouts, against a plain loop on one process."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fleet import run_fleet
from parity import TOLERANCE, skip_unless_torch_can
from worlds import Case, Run, difference, engine_run, engine_runs, merged, plain_run

SMALL = dict(
    family="gpt2", num_layers=4, hidden_size=32, num_heads=4, ffn_hidden_size=48, vocab_size=96,
    num_positions=24, init_std=0.1, z_loss=1e-3,
)  # fmt: skip
NATIVE: dict[int, list[dict[str, Any]]] = {
    2: [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3, "activation_checkpointing": "selective"},
        {"tensor": 2},
        {"tensor": 2, "sequence_parallel": False},
        {"pipeline": 2},
    ],
    4: [
        {"tensor": 2, "zero_stage": 3},
        {"tensor": 2, "pipeline": 2},
        {"pipeline": 2, "zero_stage": 2},
        {"pipeline": 2, "pipeline_schedule": "zbv-zero-bubble", "zero_stage": 3},
    ],
}


def case(parallel: dict[str, Any], *, tied: bool) -> Case:
    return Case(model=SMALL | {"tie_embeddings": tied}, parallel=parallel, num_steps=6)


@functools.cache
def reference(*, tied: bool) -> Run:
    [run] = run_fleet(1, plain_run, case({}, tied=tied))
    return run


@pytest.mark.parametrize("num_processes", NATIVE)
def test_native_layouts(num_processes: int) -> None:
    """Tied and untied by turns."""
    layouts = NATIVE[num_processes]
    for parallel in layouts:
        skip_unless_torch_can(parallel.get("pipeline_schedule", "1f1b"))
    cases = [case(layout, tied=number % 2 == 0) for number, layout in enumerate(layouts)]
    by_rank = run_fleet(num_processes, engine_runs, cases, timeout=480)
    for number, layout in enumerate(layouts):
        run = merged([runs[number] for runs in by_rank])
        found = difference(run, reference(tied=number % 2 == 0))
        assert found.worst <= TOLERANCE, (layout, found)


@pytest.mark.parametrize(
    "parallel", [{"zero_stage": 1}, {"zero_stage": 3}, {"pipeline": 2}], ids=str
)
def test_deepspeed(parallel: dict[str, Any]) -> None:
    layout = {"engine": "deepspeed"} | parallel
    runs = run_fleet(2, engine_run, case(layout, tied=True), timeout=240)
    found = difference(merged(runs), reference(tied=True))
    assert found.worst <= TOLERANCE, found
