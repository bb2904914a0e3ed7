"""A run whose data changes on the way, by plan: killed around the borders, and in other layouts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from jobs import curve, kills, read_events, read_rows, train

from triax.launcher.cli import main

SOURCES = (
    '--data.sources=[{"path": "data/train"}, {"path": "data/validation", "max_epochs": 0.8}]',
    "--data.validation=none",
)
PHASES = (
    '--data.phases=[{"tokens": 1600, "seq_len": 8, "weights": [1, 0]}, '
    '{"tokens": "1K", "seq_len": 16}, {"weights": [1, 3]}]'
)
BORDERS = [6, 10]
"""1,600 and 2,600 tokens in whole steps of 256."""


def test_a_run_goes_on_over_borders_as_if_it_had_not_been_killed(job: Path) -> None:
    careful = (*SOURCES, PHASES, "--checkpoint.every=2 steps", "--optimizer.eps=1e-5")
    straight = train(job, "--run.name=straight", *careful)
    assert straight.code == 0, straight.text
    assert straight.out.count("another phase of the data begins, and the guard anew") >= 2
    killed = kills(("after-update", 6, 0), ("before-update", 7, 0), ("after-update", 11, 0))
    codes = [train(job, *careful, killed).code for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert curve(job / "runs/job") == curve(job / "runs/straight")
    events = read_events(job / "runs/straight", "phase")
    assert [event["step"] for event in events][:2] == BORDERS
    # Where the second source has been read as often as it may, it leaves the blend.
    assert len(events) == 3 and events[2]["step"] > BORDERS[1]
    rows = read_rows(job / "runs/straight")
    assert {row["tokens"] / row["step"] for row in rows} == {256}


def test_other_layouts_read_the_same(job: Path) -> None:
    careful = (
        *SOURCES, PHASES, "--optimizer.eps=1e-5", "--optimizer.lr=2e-3",
        "--budget.tokens=3072", "--model.num_kv_heads=2", "--checkpoint.every=none",
    )  # fmt: skip
    straight = train(job, "--run.name=straight", *careful)
    assert straight.code == 0, straight.text
    three = ("--parallel.tensor=2", "--parallel.context=2", "--parallel.pipeline=2")
    ended = train(job, *careful, *three, num_processes=8)
    assert ended.code == 0, ended.text
    rows, expected = read_rows(job / "runs/job"), read_rows(job / "runs/straight")
    assert [row["num_targets"] for row in rows] == [row["num_targets"] for row in expected]
    losses = [row["loss"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)


def test_check_says_how_often_each_source_is_read(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(job)
    assert main(["check", "run.toml", *SOURCES, PHASES]) == 0
    out = capsys.readouterr().out
    for line in (
        "  phase    from 0 tokens on: 8 a sequence, sources 1 + 0",
        "  phase    from 1.6K tokens on: 16 a sequence, sources 0.5 + 0.5",
        "  phase    from 2.6K tokens on: 32 a sequence, sources 0.25 + 0.75",
    ):
        assert line in out
    train_line, validation_line = [line for line in out.splitlines() if "  reads " in line]
    assert train_line.endswith(": data/train") and "used up" not in train_line
    assert "  reads    0.792 epochs" in validation_line and "used up at" in validation_line
    capped = SOURCES[0].replace('train"', 'train", "max_epochs": 0.1')
    assert main(["check", "run.toml", capped, SOURCES[1], PHASES]) == 2
    assert "as their max_epochs says" in capsys.readouterr().err
    late = '--data.phases=[{"tokens": "1M"}, {"seq_len": 8}]'
    assert main(["check", "run.toml", late]) == 0
    assert "data.phases.1: begins after 1M tokens" in " ".join(capsys.readouterr().err.split())


def test_whole_documents_are_the_same_samples_in_every_layout_and_after_a_kill(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(job / "cache"))
    packed = (
        "--data.packing=best-fit", "--model.num_kv_heads=2",
        "--checkpoint.every=2 steps", "--optimizer.eps=1e-5", "--optimizer.lr=2e-3",
    )  # fmt: skip
    straight = train(job, "--run.name=straight", *packed)
    assert straight.code == 0, straight.text
    assert "data/train: packed, " in straight.out
    kill = kills(("after-update", 5, None))
    codes = [
        train(job, *packed, "--parallel.context=2", kill, num_processes=2).code,
        train(job, *packed, kill, num_processes=2).code,
    ]
    assert codes[0] != 0 and codes[1] == 0
    rows, expected = read_rows(job / "runs/job"), read_rows(job / "runs/straight")
    assert [row["num_targets"] for row in rows] == [row["num_targets"] for row in expected]
    assert len({row["num_targets"] for row in rows}) > 1, "some of it is padding"
    losses = [row["loss"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
