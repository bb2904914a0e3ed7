"""Whole jobs with the deepspeed engine: started by its launcher, and going on from each other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jobs
import pytest
from ports import free_port
from small_run import TOKENS_PER_STEP, command, losses, make_run

NUM_STEPS = 12
DEEPSPEED = "--parallel.engine=deepspeed"
STEADY = ("--schedule.kind=constant", "--schedule.warmup=1 steps")
"""A rate that doesn't depend on the budget, which the runs here raise."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run.toml` and the run of one process on the native engine."""
    folder = tmp_path_factory.mktemp("deepspeed")
    make_run(folder, NUM_STEPS, save_every=4)
    assert jobs.train(folder, "--run.name=alone").code == 0
    return folder


def test_its_launcher_starts_processes(folder: Path) -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(
        [
            command("deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), "--module",
            "triax.launcher.train", "run.toml", "--run.name=launched", DEEPSPEED,
            "--parallel.zero_stage=3",
        ],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "deepspeed: 2 processes on 1 node" in ended.stdout
    assert losses(folder, "launched") == pytest.approx(losses(folder, "alone"), rel=1e-5)


def test_engines_take_turns_in_one_run(folder: Path) -> None:
    """From each checkpoint the other engine goes on, in another layout."""
    turns = [
        (2, [DEEPSPEED, "--parallel.zero_stage=2"]),
        (2, ["--parallel.zero_stage=3"]),
        (2, [DEEPSPEED, "--parallel.pipeline=2"]),
    ]
    for number, (num_processes, layout) in enumerate(turns, start=1):
        tokens = f"--budget.tokens={number * 4 * TOKENS_PER_STEP}"
        ended = jobs.train(
            folder, "--run.name=turns", tokens, *STEADY, *layout, num_processes=num_processes
        )
        assert ended.code == 0, ended.out + ended.error
    assert jobs.train(folder, "--run.name=one", *STEADY).code == 0
    assert losses(folder, "turns") == pytest.approx(losses(folder, "one"), rel=1e-5)


def test_a_resumed_run_is_bitwise_the_same(folder: Path) -> None:
    """Stopped after four steps and started again, in the same layout."""
    layout = (DEEPSPEED, "--parallel.zero_stage=3", *STEADY)
    for tokens in (4 * TOKENS_PER_STEP, NUM_STEPS * TOKENS_PER_STEP):
        ended = jobs.train(
            folder, "--run.name=resumed", f"--budget.tokens={tokens}", *layout, num_processes=2
        )
        assert ended.code == 0, ended.error
    assert jobs.train(folder, "--run.name=unbroken", *layout, num_processes=2).code == 0
    assert losses(folder, "resumed") == losses(folder, "unbroken")


def test_the_guard_skips_and_rolls_back_as_on_the_native_engine(folder: Path) -> None:
    faults = """
        [[faults.plan]]
        kind = "nan-gradient"
        step = 6
        until = 8
        [stability]
        max_consecutive_skips = 2
    """
    (folder / "faults.toml").write_text((folder / "run.toml").read_text() + faults)
    events = {}
    for engine in ("native", "deepspeed"):
        ended = jobs.train(
            folder, f"--run.name=faults-{engine}", f"--parallel.engine={engine}",
            "--parallel.zero_stage=3", num_processes=2, config="faults.toml",
        )  # fmt: skip
        assert ended.code == 0, ended.out + ended.error
        lines = (folder / "runs" / f"faults-{engine}" / "events.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        events[engine] = [
            (record["event"], record.get("step"), record.get("to_step"))
            for record in records
            if record["event"] in ("skipped_update", "rollback")
        ]
    assert ("rollback", None, 4) in events["deepspeed"]
    assert events["deepspeed"] == events["native"]
    found, expected = losses(folder, "faults-deepspeed"), losses(folder, "faults-native")
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
