"""The files of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.training.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


def test_lines_are_strict_json_whatever_the_figures(directory: RunDirectory) -> None:
    directory.append_metrics({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    directory.append_event("trouble", losses=[1.5, math.nan], at={"norm": -math.inf})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    [line] = directory.metrics.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1, "loss": None, "grad_norm": None, "lr": 0.1,
    }  # fmt: skip
    [line] = directory.events.read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert (event["losses"], event["at"]) == ([1.5, None], {"norm": None})


def test_figures_keep_their_full_precision(directory: RunDirectory) -> None:
    directory.append_metrics({"step": 1, "loss": 0.1 + 0.2})
    assert directory.rows(directory.metrics)[0]["loss"] == 0.1 + 0.2


def test_lines_past_a_checkpoint_and_torn_ones_are_cut(directory: RunDirectory) -> None:
    for step in (1, 2, 3, 4):
        directory.append_metrics({"step": step})
    with directory.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    directory.cut_metrics(2)
    assert [row["step"] for row in directory.rows(directory.metrics)] == [1, 2]


def test_two_jobs_in_one_run(directory: RunDirectory) -> None:
    with (
        directory.locked(),
        pytest.raises(UserError, match="another job is training"),
        RunDirectory(directory.path).locked(),
    ):
        pass


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written"):
        RunDirectory(tmp_path / "file" / "run").create()
