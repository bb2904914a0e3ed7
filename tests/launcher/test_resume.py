"""A job that was killed goes on bitwise as if it had not been, and the same data in any layout."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from jobs import NUM_STEPS, Ended, curve, kills, read_events, read_rows, train

ONE = "--run.name=straight"
SAVE_POINTS = (
    "save-staged", "save-shard-written", "save-before-fsync", "save-before-manifest",
    "save-before-rename", "save-done",
)  # fmt: skip


def done(ended: Ended) -> None:
    assert ended.code == 0, ended.text


def train_until_done(job: Path, *overrides: str, num_processes: int = 1) -> int:
    """Repeat the same command until it ends well; returns how often it was killed."""
    for num_kills in range(20):
        ended = train(job, *overrides, num_processes=num_processes)
        if ended.code == 0:
            return num_kills
        assert ended.code == -signal.SIGKILL, ended.text
        if num_processes == 1:  # else the rank that was not killed says what it saw
            assert not (job / "runs/job/exit.json").exists()
    raise AssertionError("it is killed again and again")


def test_a_job_killed_at_every_point_of_a_save_gives_the_same_figures(job: Path) -> None:
    every = "--checkpoint.every=3 steps"
    done(train(job, ONE, every))
    # The kill at step 3 comes before there is any checkpoint.
    plan = [(point, step, None) for point, step in zip(SAVE_POINTS, range(3, 21, 3), strict=True)]
    plan += [("after-update", 20, None), ("before-update", 23, None)]
    # Two may strike at once: the loop goes on while a save is written.
    assert train_until_done(job, every, kills(*plan)) >= len(plan) - 1
    starts = [event["step"] for event in read_events(job / "runs/job", "start")]
    assert starts[:6] == [0, 0, 3, 6, 9, 12]
    assert curve(job / "runs/job") == curve(job / "runs/straight")
    assert [step for step, *_ in curve(job / "runs/job")] == list(range(1, NUM_STEPS + 1))


def test_two_processes_of_which_one_or_both_are_killed_give_the_same_figures(job: Path) -> None:
    sharded = ("--checkpoint.every=3 steps", "--parallel.zero_stage=2")
    done(train(job, ONE, *sharded, num_processes=2))
    plan = [
        ("before-update", 2, 1),
        ("save-shard-written", 3, 1),
        ("save-staged", 6, 0),
        ("save-before-fsync", 6, None),
        ("save-before-manifest", 9, 1),
        ("save-before-rename", 12, 0),
        ("save-done", 15, None),
        ("after-update", 20, 0),
    ]
    assert train_until_done(job, *sharded, kills(*plan), num_processes=2) >= len(plan) - 1
    assert curve(job / "runs/job") == curve(job / "runs/straight")


def test_a_killed_job_with_experts_gives_the_same_figures(job: Path) -> None:
    """Routers' bias and load are state like weights: without them other experts are chosen."""
    sparse = [
        *(f"--model.experts.{name}={value}" for name, value in (
            ("num_experts", 4), ("top_k", 2), ("ffn_hidden_size", 32), ("bias_rate", 0.01),
        )),
        "--parallel.expert=2", "--parallel.zero_stage=2", "--checkpoint.every=3 steps",
        "--budget.tokens=3072",
    ]  # fmt: skip
    done(train(job, ONE, *sparse, num_processes=2))
    plan = [("before-update", 5, 1), ("save-before-rename", 9, 0)]
    assert train_until_done(job, *sparse, kills(*plan), num_processes=2) >= 1
    figures = ("loss", "grad_norm", "expert_load/0", "expert_load/1", "router_entropy")
    straight, killed = (
        [[row[name] for name in figures] for row in read_rows(job / "runs" / name)]
        for name in ("straight", "job")
    )
    assert straight == killed and len(straight) == 12


def test_a_job_killed_at_any_moment_gives_the_same_figures(job: Path) -> None:
    often = ("--checkpoint.every=2 steps", "--budget.tokens=24576")
    done(train(job, ONE, *often))
    chance, run = random.Random(5), job / "runs/job"
    for _ in range(5):
        more, moment = chance.randint(5, 25), chance.random() * 0.05
        before = len(read_rows(run))

        def is_time(step: int = before + more, moment: float = moment) -> bool:
            if len(read_rows(run)) < step:
                return False
            time.sleep(moment)
            return True

        ended = train(job, *often, signal_when=(signal.SIGKILL, is_time))
        assert ended.code in (-signal.SIGKILL, 0), ended.text
    done(train(job, *often))
    assert curve(run) == curve(job / "runs/straight")


def test_another_number_of_processes_reads_the_same_data(job: Path) -> None:
    careful = ("--checkpoint.every=3 steps", "--optimizer.eps=1e-5", "--optimizer.lr=2e-3")
    done(train(job, ONE, *careful))
    killed = kills(("after-update", 8, 0), ("after-update", 17, 0))
    for num_processes in (2, 1):
        ended = train(job, *careful, killed, num_processes=num_processes)
        assert ended.code == -signal.SIGKILL, ended.text
    done(train(job, *careful, num_processes=4))
    rows, straight = read_rows(job / "runs/job"), read_rows(job / "runs/straight")
    for name in ("step", "tokens", "cursor", "num_targets", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in straight]
    for name in ("loss", "grad_norm"):
        expected = [row[name] for row in straight]
        assert [row[name] for row in rows] == pytest.approx(expected, rel=1e-5)


def test_another_layout_reads_the_same_data_and_validates_the_same(job: Path) -> None:
    careful = (
        "--checkpoint.every=3 steps", "--optimizer.eps=1e-5", "--optimizer.lr=2e-3",
        "--model.num_kv_heads=2", "--model.num_layers=4",
    )  # fmt: skip
    three_axes = ("--parallel.tensor=2", "--parallel.pipeline=2")
    done(train(job, ONE, *careful))
    looped = (*three_axes, "--parallel.pipeline_schedule=interleaved-1f1b")
    ended = train(job, *careful, *looped, kills(("after-update", 11, None)), num_processes=4)
    assert ended.code == -signal.SIGKILL, ended.text
    assert "pipeline 1   [2 3]n0" in ended.out, "the mesh is drawn"
    done(train(job, *careful, "--parallel.pipeline=2", "--parallel.zero_stage=3", num_processes=4))
    rows, straight = read_rows(job / "runs/job"), read_rows(job / "runs/straight")
    for name in ("step", "tokens", "cursor", "num_targets", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in straight]
    for name in ("loss", "grad_norm"):
        expected = [row[name] for row in straight]
        assert [row[name] for row in rows] == pytest.approx(expected, rel=1e-5)
    validations = [
        {event["step"]: event["loss"] for event in read_events(job / "runs" / run, "evaluation")}
        for run in ("job", "straight")
    ]
    assert validations[0] == pytest.approx(validations[1], rel=1e-5)
