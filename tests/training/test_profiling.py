"""`[profile]`: a window of steps as a trace, and nothing of it where it is off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from triax.training.config import ProfileConfig
from triax.training.records.profiling import Profiling

CPU = torch.device("cpu")


def run_steps(
    folder: Path, config: ProfileConfig, steps: range, *, rank: int = 0
) -> list[list[Path]]:
    """Multiply once a step; returns what was told."""
    told: list[list[Path]] = []
    own = Profiling(config, rank, folder, CPU, told.append)
    for step in steps:
        own.before_step(step)
        torch.ones(4, 4) @ torch.ones(4, 4)
        own.after_step(step)
    own.close()
    return told


def products(path: Path) -> int:
    """Matrix products in a trace: an object of events, each with what Perfetto asks for."""
    trace = json.loads(path.read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in events)
    return sum(event["name"] == "aten::mm" for event in events)


@pytest.mark.parametrize(
    ("window", "steps", "name", "count"),
    [
        ("2-3", range(1, 6), "trace-rank-0-steps-2-3.json", 2),
        ("4", range(1, 6), "trace-rank-0-steps-4-4.json", 1),
        ("2-9", range(3, 5), "trace-rank-0-steps-3-4.json", 2),  # resumed within, ended within
    ],
)
def test_a_window_becomes_a_trace(
    window: str, steps: range, name: str, count: int, tmp_path: Path
) -> None:
    assert run_steps(tmp_path / "profile", ProfileConfig(steps=window), steps) == [
        [tmp_path / "profile" / name]
    ]
    assert products(tmp_path / "profile" / name) == count
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_a_rollback_out_of_the_window_ends_it(tmp_path: Path) -> None:
    """What is taken again before it is no part of it."""
    told: list[list[Path]] = []
    own = Profiling(ProfileConfig(steps="4-6"), 0, tmp_path, CPU, told.append)
    for step in (3, 4, 5, 2, 3, 4, 5, 6, 7):
        own.before_step(step)
        torch.ones(4, 4) @ torch.ones(4, 4)
        own.after_step(step)
    names = ["trace-rank-0-steps-4-5.json", "trace-rank-0-steps-4-6.json"]
    assert told == [[tmp_path / name] for name in names]
    assert [products(tmp_path / name) for name in names] == [2, 3]


def test_other_ranks_and_runs_without_a_window_write_nothing(tmp_path: Path) -> None:
    chosen = ProfileConfig(steps="1-2", ranks=(1,))
    assert run_steps(tmp_path, chosen, range(1, 4)) == []
    assert run_steps(tmp_path, ProfileConfig(), range(1, 4)) == []
    assert not list(tmp_path.iterdir())
    assert len(run_steps(tmp_path, chosen, range(1, 4), rank=1)) == 1


def test_a_trace_that_cannot_be_written_loses_no_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run_steps(tmp_path / "file", ProfileConfig(steps="1"), range(1, 3)) == []


@pytest.mark.parametrize("fails", ["start", "export_chrome_trace"])
def test_memory_is_not_recorded_beyond_a_profile_that_fails(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("busy")

    calls: list[dict[str, object]] = []
    monkeypatch.setattr(
        torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options)
    )
    monkeypatch.setattr(torch.profiler.profile, fails, fail)
    told: list[list[Path]] = []
    found = Profiling(ProfileConfig(steps="1"), 0, tmp_path, torch.device("cuda"), told.append)
    for step in (1, 2):
        found.before_step(step)
        found.after_step(step)
    assert not told and len(calls) == 2 and calls[-1] == {"enabled": None}


@pytest.mark.parametrize("text", ["", "0", "0-3", "5-4", "a-b", "1-", "-3", "1-2-3", "1.5"])
def test_windows_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValidationError):
        ProfileConfig(steps=text)
