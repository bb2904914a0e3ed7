"""Optimizer state on a drive: what DeepSpeed's aio is needed for, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deepspeed_ranks import (
    aio_problem,
    folders_of_the_living_and_the_dead,
    refusal_where_one_has_no_aio,
    refused_update,
    run_with_swapping,
)
from fleet import run_fleet
from parity import TOLERANCE
from worlds import SMALL, Case, Run, difference, merged, plain_run, run_leg

LARGE = SMALL | {"hidden_size": 128, "ffn_hidden_size": 256, "vocab_size": 480, "num_layers": 4}
"""DeepSpeed swaps nothing below a megabyte."""
LARGER = LARGE | {"num_layers": 8}
SWAPPED_AT_ONCE = 270_000
"""So many that the larger one's matrices are in two buffers, and some that are left in memory."""


def reference(model: dict[str, Any]) -> Run:
    """The plain loop's run."""
    [run] = run_fleet(1, plain_run, Case(model=model))
    return run


@pytest.fixture(scope="module")
def aio() -> None:
    """Skips where DeepSpeed's asynchronous I/O doesn't run, or would have to be compiled first."""
    [problem] = run_fleet(1, aio_problem)
    if problem is not None:
        pytest.skip(problem)


def case(folder: Path, **changes: Any) -> Case:
    parallel: dict[str, Any] = {"engine": "deepspeed", "zero_stage": 3, "offload": "nvme"}
    parallel["offload_path"] = str(folder)
    return Case(**{"model": LARGE, "parallel": parallel} | changes)


@pytest.mark.usefixtures("aio")
def test_swapped_state_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    """With two buffers on the drive, and two in memory."""
    found = run_fleet(2, run_with_swapping, case(tmp_path, model=LARGER), SWAPPED_AT_ONCE)
    assert difference(merged([run for run, _ in found]), reference(LARGER)).worst <= TOLERANCE
    for _, files in found:
        kinds = [name.rpartition("-")[0] for name in files]
        assert sorted(kinds) == ["", "", "exp_avg", "exp_avg", "exp_avg_sq", "exp_avg_sq"]


@pytest.mark.usefixtures("aio")
def test_a_refused_update_changes_nothing(tmp_path: Path) -> None:
    for report in run_fleet(2, refused_update, case(tmp_path, precision={"compute": "bf16"})):
        assert report == []


@pytest.mark.usefixtures("aio")
def test_state_is_saved_from_the_drive_and_read_onto_it(tmp_path: Path) -> None:
    """In turns with the native engine, in whose files nothing tells of drives."""
    drive, checkpoints = tmp_path / "drive", tmp_path / "checkpoints"
    drive.mkdir()
    swapped = case(drive)
    losses: list[float] = []
    saved: dict[str, Any] = {}
    for number, turn in enumerate((swapped, Case(model=LARGE), swapped)):
        legs = run_fleet(2, run_leg, turn, str(checkpoints), number * 2, 2)
        assert all(legs[0].loaded[name].equal(saved[name]) for name in saved)
        saved = legs[0].saved
        losses += legs[0].losses
    assert losses == pytest.approx(reference(LARGE).losses[:6], rel=TOLERANCE)


def test_a_killed_process_leaves_nothing_for_long(tmp_path: Path) -> None:
    """Its folder is there until the next one comes to the same drive, and a living one's longer."""
    [(dead, living, others)] = run_fleet(1, folders_of_the_living_and_the_dead, str(tmp_path))
    assert dead not in others and living in others


def test_one_machine_without_aio_stops_all_with_its_reason(tmp_path: Path) -> None:
    found = run_fleet(2, refusal_where_one_has_no_aio, case(tmp_path))
    assert found == ["rank 1: no libaio"] * 2


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for text in run_fleet(2, refusal_where_one_has_no_aio, case(tmp_path / "missing")):
        assert "parallel.offload_path" in text and "is no folder" in text
