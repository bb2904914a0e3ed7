"""Compiled blocks in every kind of layout, against a plain loop."""

from __future__ import annotations

import pytest
from fleet import run_fleet
from parity import TOLERANCE, label, make_model, reference
from worlds import Case, compiled_run, difference, merged

LAYOUTS = [
    (2, {"zero_stage": 3}),
    (2, {"tensor": 2, "activation_checkpointing": "selective"}),
    (2, {"context": 2, "context_method": "ring", "activation_checkpointing": "selective"}),
    (2, {"tensor": 2, "sequence_parallel": False, "activation_checkpointing": "full"}),
    (4, {"tensor": 2, "pipeline": 2, "pipeline_schedule": "interleaved-1f1b", "zero_stage": 2}),
]


@pytest.mark.parametrize(("num_processes", "parallel"), LAYOUTS, ids=label)
def test_compiled_blocks(num_processes: int, parallel: dict[str, object]) -> None:
    case = Case(
        model=make_model(tied=True), parallel=parallel | {"compile": True}, micro_batch_size=2
    )
    run = merged(run_fleet(num_processes, compiled_run, case, timeout=240))
    found = difference(run, reference(tied=True))
    assert found.worst <= TOLERANCE, found
