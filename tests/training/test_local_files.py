"""One log, one file of stacks and one of heartbeats for each node, wherever they lie."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triax.common.errors import UserError
from triax.launcher.cluster.process_group import log_to_file
from triax.training.records.local_files import LocalFiles
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.diagnosis import diagnose
from triax.training.stability.heartbeat import Board, Heartbeat, read_heartbeats
from triax.training.stability.watchdog import Watchdog
from triax.training.stability_config import StabilityConfig


def files_of(
    tmp_path: Path, rank: int, local_dir: Path | None = None, *, per_rank: bool = False
) -> LocalFiles:
    """Of a job of two nodes with two processes each."""
    return LocalFiles.of(
        RunDirectory(tmp_path / "run"), rank=rank, local_rank=rank % 2, node_rank=rank // 2,
        world_size=4, local_world_size=2, per_rank=per_rank,
        local_dir=None if local_dir is None else str(local_dir),
    )  # fmt: skip


def beat(rank: int, files: str) -> Heartbeat:
    return Heartbeat(rank, "host", 1, 5, "stepping", 9, 1.0, 2.0, 1.0, "failed", files)


@pytest.mark.parametrize("is_local", [False, True])
def test_a_node_has_one_file_of_each_kind(tmp_path: Path, is_local: bool) -> None:
    RunDirectory(tmp_path / "run").create()
    for rank in range(4):
        files = files_of(tmp_path, rank, tmp_path / f"drive{rank // 2}" if is_local else None)
        files.create()
        Board(files.heartbeats, files.slot, files.num_slots).write(beat(rank, files.name))
        logger = logging.getLogger("triax")
        log_to_file(files)
        logging.getLogger("triax.job").info("of rank %d", rank)
        try:
            raise OSError(f"rank {rank}'s\nown")
        except OSError:
            logging.getLogger("triax.job").exception("the job ends")
        logger.removeHandler(logger.handlers[-1])
        for _ in range(2):
            files.gather()
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "logs").glob("*")) == ["node-0.log", "node-1.log"]
    assert len(list((run / "heartbeats").iterdir())) == 2
    lines = (run / "logs/node-1.log").read_text().splitlines()
    assert sum("of rank 2" in line for line in lines) == 1
    assert not any("of rank 3" in line for line in lines), "it would say what rank 2 says"
    assert sum("OSError: rank 3's" in line for line in lines) == 1
    assert all(line.startswith(("rank 2 | ", "rank 3 | ")) for line in lines)
    assert [found.rank for found in read_heartbeats(run / "heartbeats")] == [0, 1, 2, 3]
    assert [p.error for p in diagnose(run).processes] == [f"OSError: rank {n}'s" for n in range(4)]


def test_each_rank_may_have_its_own(tmp_path: Path) -> None:
    files = [files_of(tmp_path, rank, per_rank=True) for rank in range(4)]
    assert [each.log.name for each in files] == [f"rank-{rank}.log" for rank in range(4)]
    assert all(each.speaks and each.num_slots == 1 for each in files)


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(tmp_path, 0, tmp_path / "drive")
    monkeypatch.setattr("os.getuid", lambda: -1)
    with pytest.raises(UserError, match=r"run\.local_dir: .* another user's"):
        files.create()


def test_a_job_of_fewer_processes_leaves_no_old_lines(tmp_path: Path) -> None:
    path = tmp_path / "node-0.jsonl"
    for slot in range(4):
        Board(path, slot, 4).write(beat(slot, "node-0"))
    Board(path, 0, 2).write(replace(beat(0, "node-0"), time=9.0))
    assert [(found.rank, found.time) for found in read_heartbeats(tmp_path)] == [(0, 9.0), (1, 2.0)]


@pytest.mark.parametrize("is_local", [False, True])
def test_a_process_waits_for_what_another_may_do_and_for_none_that_is_further(
    tmp_path: Path, is_local: bool
) -> None:
    """A copy of another node's heartbeats may be a minute old."""
    RunDirectory(tmp_path / "run").create()
    files = files_of(tmp_path, 0, tmp_path / "drive0" if is_local else None)
    others = files_of(tmp_path, 2, tmp_path / "drive1" if is_local else None)
    for each in (files, others):
        each.create()
    watchdog = Watchdog(files, StabilityConfig(), world_size=4, at_least={"saving": 900.0})
    watchdog.beat("in the step", 5)
    board = Board(others.heartbeats, others.slot, others.num_slots)

    def may_take(age: float, num_beats: int) -> float:
        known = beat(2, others.name)
        changes: dict[str, Any] = {
            "activity": "saving",
            "status": "running",
            "num_beats": num_beats,
        }
        changes |= {"time": time.time() - age, "copied_after": 60.0 if is_local else 0.0}
        board.write(replace(known, **changes))
        others.gather_heartbeats()
        return watchdog._others_may_take()

    assert may_take(0.0, 1) == 900
    assert may_take(40.0, 1) == (900 if is_local else 0)
    assert may_take(100.0, 1) == 0, "it is dead"
    assert may_take(0.0, 2) == 0, "it waits for this one"
    with watchdog:
        pass
    (own,) = files_read(files)
    assert own.copied_after == (60 if is_local else 0)


def files_read(files: LocalFiles) -> list[Heartbeat]:
    return [beat for beat in read_heartbeats(files.heartbeats.parent) if beat.rank == files.rank]
