"""A run that changes its layout at every checkpoint goes on as if it had never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parity import CAN_SPLIT_BACKWARD, make_model
from relay import check_relay
from worlds import Case

SCHEDULE = "zbv-zero-bubble" if CAN_SPLIT_BACKWARD else "1f1b"
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero_stage": 3}),
    (4, {"tensor": 2, "pipeline": 2, "pipeline_schedule": SCHEDULE}),
    (1, {}),
    (4, {"pipeline": 2, "pipeline_schedule": "interleaved-1f1b", "zero_stage": 2}),
    (4, {"tensor": 2, "zero_stage": 0}),
]
ENGINES: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero_stage": 3}),
    (4, {"engine": "deepspeed", "tensor": 2, "zero_stage": 2}),
    (2, {"engine": "deepspeed", "zero_stage": 3}),
    (4, {"tensor": 2, "pipeline": 2}),
    (4, {"engine": "deepspeed", "zero_stage": 1}),
]


@pytest.mark.parametrize(
    ("layouts", "tied"), [(LAYOUTS, True), (ENGINES, False)], ids=["layouts-tied", "engines-untied"]
)
def test_any_layout_goes_on_from_any_other(
    tmp_path: Path, layouts: list[tuple[int, dict[str, Any]]], tied: bool
) -> None:
    model = make_model(tied)
    check_relay(
        tmp_path,
        [(n, Case(model=model, parallel=parallel, micro_batch_size=2)) for n, parallel in layouts],
    )
