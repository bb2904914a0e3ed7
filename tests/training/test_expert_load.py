"""Figures of experts' load: counted token by token, told to all writers, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expert_worlds import EXPERTS, counted_row, sparse_model, step_rows
from fleet import run_fleet
from worlds import Case

from triax.training.records.expert_load import describe_load, plot_loads, read_loads
from triax.training.records.metrics import MetricsWriters

MANY = EXPERTS | {"num_experts": 32}
"""So many that some get no token."""


def test_figures_are_what_counting_gives_in_any_layout() -> None:
    """Of target tokens alone, over micro-batches, pipeline stages and processes."""
    case = Case(model=sparse_model(MANY), global_batch_size=4)
    [expected] = run_fleet(1, counted_row, case)
    assert expected["dead_experts"] > 0 and expected["expert_load_max"] > 1.5
    layouts: list[dict[str, Any]] = [
        {"expert": 2, "zero_stage": 2}, {"tensor": 2}, {"pipeline": 2}
    ]  # fmt: skip
    cases = [Case(model=case.model, global_batch_size=4, parallel=each) for each in layouts]
    for rows in run_fleet(2, step_rows, cases):
        for layout, row in zip(layouts, rows, strict=True):
            found = {name: value for name, value in row.items() if name in expected}
            assert found == pytest.approx(expected, rel=1e-5), layout
            assert "expert_load/0" not in row, "the first layer has no experts"


class Recorder:
    """A writer like TensorBoard's."""

    def __init__(self) -> None:
        self.shown: dict[str, float] = {}

    def log(self, _step: int, scalars: dict[str, float]) -> None:
        self.shown |= scalars

    def log_texts(self, _step: int, texts: dict[str, str]) -> None: ...

    def rewind(self, next_step: int) -> None: ...

    def close(self) -> None: ...


def test_writers_are_told_the_load_of_each_layer() -> None:
    recorder = Recorder()
    MetricsWriters([recorder]).log_row({"step": 1, "expert_load_max": 2.5, "expert_load/3": 2.5})
    assert recorder.shown == {"train/expert_load_max": 2.5, "train/expert_load/3": 2.5}


def row(number: int, **loads: Any) -> dict[str, Any]:
    layers = {f"expert_load/{name.removeprefix('L')}": load for name, load in loads.items()}
    return {
        "step": number,
        "tokens": 8 * number,
        "dead_experts": 3.0,
        "dropped_tokens": 0.0,
        **layers,
    }


def test_the_last_line_names_the_busiest_layer() -> None:
    rows = [row(1, L1=1.5, L2=3.25), {"step": 2, "tokens": 16}]
    assert describe_load(rows) == ("busiest 3.25 x the mean (layer 2), 3 without tokens, 0 dropped")
    assert describe_load([{"step": 1, "tokens": 8, "loss": 2.0}]) is None


@pytest.mark.parametrize("num_rows", [1, 2, 1000])
def test_loads_are_drawn_however_long_the_run(num_rows: int, tmp_path: Path) -> None:
    rows = [row(n, L1=1.0 + n % 2, L3=2.0) for n in range(1, num_rows + 1)]
    loads = read_loads([{"step": 0}, *rows])
    assert loads.layers == [1, 3] and len(loads.tokens) == min(num_rows, 334)
    assert loads.values[1] == [2.0] * len(loads.tokens)
    assert all(1.0 <= load <= 2.0 for load in loads.values[0])
    plot_loads(tmp_path / "load.png", loads, "a$b_{$ 名前")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_load_leaves_a_gap() -> None:
    loads = read_loads([row(1, L1=1.5), row(2, L1=None, L2="x"), row(3, L2=2.0, Lx=1.0)])
    assert loads.layers == [1, 2] and loads.tokens == [8, 24]
    assert loads.values[0][0] == 1.5 and loads.values[0][1] != loads.values[0][1]
