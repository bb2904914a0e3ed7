"""What a change of structure must not move, against stored figures (`support/golden.py`).

On the kind of machine that stored them, to the last bit; elsewhere as far as sums in other orders
and other kernels allow.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden import (
    DEEPSPEED,
    LAYOUTS,
    PATH,
    deepspeed_figures,
    initial_checksum,
    layout_figures,
    machine,
    shape_figures,
)

STORED: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
IS_SAME_MACHINE = machine() == STORED["machine"]


def test_shapes_counts_names_and_stages() -> None:
    assert shape_figures() == STORED["shapes"]


def test_initial_weights() -> None:
    if not IS_SAME_MACHINE:
        pytest.skip("logarithms and cosines differ in their last bits")
    assert initial_checksum() == STORED["initial"]


@pytest.mark.parametrize(
    "num_processes",
    [pytest.param(count, marks=pytest.mark.grid if count > 2 else ()) for count in LAYOUTS],
)
def test_losses_norms_and_state_of_layouts(num_processes: int) -> None:
    compare(layout_figures(num_processes))


def compare(found: dict[str, Any]) -> None:
    """With what is stored, as exactly as this machine can."""
    expected = {name: STORED["layouts"][name] for name in found}
    if IS_SAME_MACHINE:
        assert found == expected
    for name, figures in found.items():
        tolerance = 1e-2 if "bf16" in name else 1e-5
        for kind in ("losses", "grad_norms"):
            assert figures[kind] == pytest.approx(expected[name][kind], rel=tolerance), name


@pytest.mark.grid
@pytest.mark.parametrize("number", range(len(DEEPSPEED)))
def test_losses_norms_and_state_of_the_deepspeed_engine(number: int) -> None:
    compare(deepspeed_figures(number))
