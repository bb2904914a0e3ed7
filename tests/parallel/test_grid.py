"""The whole grid of layouts against a plain loop: `pytest -m grid`.

`TRIAX_PARITY_TABLE=docs/parity.md pytest -m grid` also writes what it measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid import layouts
from parity import DEEP, TOLERANCE, WIDE, label, measure
from worlds import Difference

pytestmark = pytest.mark.grid

HEADER = """\
# Parity

Every layout against a plain loop on one process: fp32, ten steps, unequal numbers of targets,
packed documents, constant learning rate, clipping active on some steps; 8 layers. Each is run with
untied and with tied embeddings, and the larger difference is shown. Losses and gradient norms:
largest relative difference over the steps; gradients after the first step and weights after the
last: largest absolute difference. All are to be at most 1e-5. Written by
`TRIAX_PARITY_TABLE=docs/parity.md pytest -m grid` on CPU (gloo).

| processes | layout | losses | norms | gradients | weights |
|---|---|---|---|---|---|
"""


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    path = os.environ.get("TRIAX_PARITY_TABLE")
    if path:
        Path(path).write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")


def row(num_processes: int, parallel: dict[str, Any], found: Difference) -> str:
    shown = {name: value for name, value in parallel.items() if value != 1 or name == "zero_stage"}
    layout = ", ".join(f"{name} {value}" for name, value in shown.items())
    figures = (found.losses, found.grad_norms, found.gradients, found.parameters)
    return f"| {num_processes} | {layout} | " + " | ".join(f"{x:.1e}" for x in figures) + " |"


@pytest.mark.parametrize(("num_processes", "parallel"), list(layouts()), ids=label)
def test_layout(num_processes: int, parallel: dict[str, Any], table: list[str]) -> None:
    untied, tied = (
        measure(num_processes, parallel, tied=tied, model=WIDE | DEEP) for tied in (False, True)
    )
    found = untied.or_worse(tied)
    table.append(row(num_processes, parallel, found))
    assert found.worst <= TOLERANCE, found
