"""A run that changes its layout at every checkpoint goes on as if it had never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fleet import run_fleet
from parity import CAN_SPLIT_BACKWARD, TOLERANCE, make_model, reference
from torch import Tensor
from worlds import Case, Leg, run_leg

SCHEDULE = "zbv-zero-bubble" if CAN_SPLIT_BACKWARD else "1f1b"
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero_stage": 3}),
    (4, {"tensor": 2, "pipeline": 2, "pipeline_schedule": SCHEDULE}),
    (1, {}),
    (4, {"pipeline": 2, "pipeline_schedule": "interleaved-1f1b", "zero_stage": 2}),
    (4, {"tensor": 2, "zero_stage": 0}),
]
STEPS_EACH = 2


def whole_state(legs: list[Leg], which: str) -> dict[str, Tensor]:
    return {name: tensor for leg in legs for name, tensor in getattr(leg, which).items()}


ENGINES: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero_stage": 3}),
    (4, {"engine": "deepspeed", "tensor": 2, "zero_stage": 2}),
    (2, {"engine": "deepspeed", "zero_stage": 3}),
    (4, {"tensor": 2, "pipeline": 2}),
    (4, {"engine": "deepspeed", "zero_stage": 1}),
]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_any_layout_goes_on_from_any_other(tmp_path: Path, tied: bool) -> None:
    check_relay(tmp_path, LAYOUTS, tied)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_any_engine_goes_on_from_any_other(tmp_path: Path, tied: bool) -> None:
    check_relay(tmp_path, ENGINES, tied)


def check_relay(tmp_path: Path, layouts: list[tuple[int, dict[str, Any]]], tied: bool) -> None:
    losses: list[float] = []
    saved: dict[str, Tensor] = {}
    for number, (num_processes, parallel) in enumerate(layouts):
        case = Case(model=make_model(tied), parallel=parallel, micro_batch_size=2)
        first_step = number * STEPS_EACH
        legs = run_fleet(num_processes, run_leg, case, str(tmp_path), first_step, STEPS_EACH)
        loaded = whole_state(legs, "loaded")
        if saved:
            assert loaded.keys() == saved.keys()
            for name in saved:
                torch.testing.assert_close(loaded[name], saved[name], rtol=0, atol=0, msg=name)
        saved = whole_state(legs, "saved")
        losses += legs[0].losses
    assert any(name.endswith("exp_avg_sq") for name in saved)
    torch.testing.assert_close(losses, reference(tied).losses, rtol=TOLERANCE, atol=0)
