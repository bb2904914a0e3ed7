"""Layouts compared with a plain loop on one process."""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any

import pytest
from fleet import run_fleet
from worlds import SMALL, Case, Difference, Run, difference, engine_run, merged, plain_run

from triax.parallel.stages import SCHEDULES, SPLIT_BACKWARD_NEEDS_TORCH

TOLERANCE = 1e-5
CAN_SPLIT_BACKWARD = (
    tuple(int(part) for part in version("torch").split(".")[:2]) >= SPLIT_BACKWARD_NEEDS_TORCH
)
WIDE = {"num_kv_heads": 4}
"""Enough heads for four tensor ranks."""
DEEP = {"num_layers": 8}
"""Enough layers for eight stages."""


@functools.cache
def reference(tied: bool, **changes: int) -> Run:
    """The plain loop's run of the small model, computed once."""
    [run] = run_fleet(1, plain_run, Case(model=make_model(tied, **changes)))
    return run


def make_model(tied: bool, **changes: int) -> dict[str, Any]:
    """The small model, tied or not, perhaps with more layers or key/value heads."""
    return SMALL | changes | {"tie_embeddings": tied}


def measure(
    num_processes: int, parallel: dict[str, Any], *, tied: bool,
    model: dict[str, int] | None = None, micro_batch_size: int = 1, **changes: Any,
) -> Difference:  # fmt: skip
    """How far a layout is from the plain loop, over ten steps."""
    skip_unless_torch_can(parallel.get("pipeline_schedule", "1f1b"))
    case = Case(
        model=make_model(tied, **(model or {})),
        parallel=parallel,
        micro_batch_size=micro_batch_size,
        **changes,
    )
    runs = run_fleet(num_processes, engine_run, case, timeout=240)
    return difference(merged(runs), reference(tied, **(model or {})))


def skip_unless_torch_can(schedule: str) -> None:
    """Skip a test of a schedule that the installed torch can't run; `triax check` refuses it."""
    if SCHEDULES[schedule].splits_backward and not CAN_SPLIT_BACKWARD:
        pytest.skip(f"{schedule} needs torch {SPLIT_BACKWARD_NEEDS_TORCH}")


def label(value: object) -> str:
    """A test's name for a layout."""
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values())
    return str(value)
