"""The picture of a run: which points it has, and that it is drawn whatever the run is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from triax.training.records.plot import plot_losses, read_curves
from triax.training.records.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    made.append_event("start", step=0)
    return made


def test_validations_are_drawn_at_steps_that_are_not_logged(directory: RunDirectory) -> None:
    for step in (10, 20):
        directory.append_metrics({"step": step, "tokens": step * 4, "loss": 3.0})
    for step in (0, 15, 24):
        directory.append_event("evaluation", step=step, loss=2.0)
    curves = read_curves(directory, 4)
    assert curves.training == [(40, 3.0), (80, 3.0)]
    assert curves.validation == [(0, 2.0), (60, 2.0), (96, 2.0)]


def test_validations_that_the_run_went_back_behind_are_not_drawn(directory: RunDirectory) -> None:
    for step in (10, 20, 30):
        directory.append_event("evaluation", step=step, loss=2.0)
    directory.append_event("rollback", from_step=35, to_step=25)
    directory.append_event("start", step=18)
    assert read_curves(directory, 4).validation == [(40, 2.0)]


def test_rows_that_cannot_be_drawn_are_left_out(directory: RunDirectory) -> None:
    with directory.metrics.open("wb") as file:
        file.write(
            b'\xff\n{"step": 1, "tokens": 4, "loss": NaN}\n{"step": 2, "loss": 1}\n'
            b'{"step": 3, "tokens": 1' + b"0" * 400 + b', "loss": 2.0}\n'
            b'{"step": 4, "tokens": 16, "loss": "x"}\n{"step": 5, "tokens": 20, "loss": 1.5}\n'
        )
    directory.append_event("evaluation", step="x", loss=1.0)
    directory.append_event("rollback")
    assert read_curves(directory, 4) == ([(20, 1.5)], [], 1)


@pytest.mark.parametrize("title", ["a$b_{$", "\\frac", "名前 \u202e", "a\nb", "%"])
def test_a_name_is_no_formula(
    directory: RunDirectory, title: str, recwarn: pytest.WarningsRecorder
) -> None:
    directory.append_metrics({"step": 1, "tokens": 4, "loss": 3.0})
    plot_losses(directory.plot, read_curves(directory, 4), title)
    assert directory.plot.read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list
