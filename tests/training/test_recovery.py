"""Whole jobs under rehearsed faults: what is skipped, rolled back, stopped, saved and told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from rehearsal import Ended, faults, run_job, steps, write_config

from triax.training.stability.escalation import Rollback
from triax.training.stability.heartbeat import STACKS_OF
from triax.training.stability.recovery import Recovery
from triax.training.step.state import TrainState

SAVE = "--checkpoint.every=10 steps"
GUARD = ("--stability.window=32", "--stability.max_consecutive_skips=3")
_DIAGNOSE = "import sys; from triax.launcher.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jobs")
    write_config(path)
    return path


def diagnosed(run: Ended) -> str:
    """What `triax diagnose` prints."""
    result = subprocess.run(
        [sys.executable, "-c", _DIAGNOSE, "diagnose", str(run.run_dir)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def clean(folder: Path) -> Ended:
    run = run_job(folder, 1, steps(100), SAVE, *GUARD, "--run.name=clean")
    assert run.code == 0, run.output
    assert not run.events("skipped_update")
    return run


BAD_WINDOW = {"kind": "corrupt-batch", "step": 61, "until": 66}


@pytest.fixture(scope="module")
def recovered(folder: Path) -> Ended:
    return run_job(folder, 1, steps(100), SAVE, *GUARD, "--run.name=bad", faults(BAD_WINDOW))


def test_a_bad_window_is_skipped_then_jumped_over(recovered: Ended, clean: Ended) -> None:
    assert recovered.code == 0, recovered.output
    first = recovered.events("skipped_update")[0]
    assert (first["step"], first["samples"], first["reason"]) == (61, [480, 488], "loss spike")
    (rollback,) = recovered.events("rollback")
    assert (rollback["from_step"], rollback["to_step"]) == (64, 50)
    assert rollback["skipped_samples"] == [400, 512]
    rows = recovered.rows()
    assert [row["step"] for row in rows] == list(range(1, 101))
    assert rows[-1]["tokens"] == clean.rows()[-1]["tokens"]
    assert [row["step"] for row in recovered.rows("abandoned.jsonl")] == list(range(51, 65))
    for step in range(1, 51):
        assert recovered.losses()[step] == clean.losses()[step]
    assert max(row["loss"] for row in rows[-20:] if not row["skipped"]) < 2.6
    manifest = json.loads(
        (recovered.run_dir / "checkpoints/step-00000100/manifest.json").read_text()
    )
    kept = manifest["manifest"]["record"]["escalation"]
    assert kept["skipped_ranges"] == [[400, 512]]
    assert kept["num_rollbacks"] == 1


@pytest.mark.parametrize(
    "kill",
    [{"step": 63}, {"step": 64, "point": "after-update"}, {"step": 50, "point": "save-done"}],
    ids=["while-refusing", "before-the-rollback", "right-after-the-target's-save"],
)
def test_killed_around_the_rollback_it_decides_the_same(
    folder: Path, recovered: Ended, kill: dict[str, object]
) -> None:
    name = f"--run.name=killed-{kill['step']}"
    plan = faults(BAD_WINDOW, {"kind": "kill", **kill})
    sessions = [run_job(folder, 1, steps(100), SAVE, *GUARD, name, plan) for _ in range(2)]
    assert [session.code for session in sessions] == [-9, 0], sessions[-1].output
    assert sessions[-1].losses() == recovered.losses()
    assert [row["cursor"] for row in sessions[-1].rows()] == [
        row["cursor"] for row in recovered.rows()
    ]


@pytest.mark.parametrize("border", [None, 450])
def test_the_guard_doesnt_judge_another_phase_by_the_one_before(border: int | None) -> None:
    """Samples never come back, so a rollback may lead over a border of the data."""
    guard, store = mock.Mock(), mock.Mock()
    store.load.return_value = {"step": 50, "tokens": 50, "cursor": 400}
    escalation = mock.Mock(trouble="spikes", refusals=[1], num_rollbacks=1)
    recovery = Recovery(
        mock.Mock(), guard, escalation, store, mock.Mock(), guard.load,
        lambda a, b: border is not None and a < border <= b, mock.Mock(),
    )  # fmt: skip
    state, ending = recovery.act(Rollback(61, 55), TrainState(64, 64, 512))
    assert ending is None and state == TrainState(50, 50, 512)
    called = [call[0] for call in guard.mock_calls]
    assert called == (["load"] if border is None else ["load", "forget"])


def test_persistent_nans_stop_the_run_with_a_report(folder: Path) -> None:
    plan = faults({"kind": "nan-gradient", "step": 31, "until": 200})
    run = run_job(
        folder, 1, steps(60), SAVE, *GUARD, "--stability.max_rollbacks=1", "--run.name=nan", plan
    )
    assert run.code == 3, run.output
    assert run.exit["code"] == 3
    assert len(run.events("rollback")) == 1
    report = (run.run_dir / "stop-report.md").read_text()
    assert "| 21 | 272 to 279 |" in report and "non-finite" in report
    assert len(report.splitlines()) < 60
    assert report in run.output
    assert "stop-report.md" in diagnosed(run)


def test_a_spike_before_any_checkpoint_stops_the_run(folder: Path) -> None:
    plan = faults({"kind": "nan-gradient", "step": 3, "until": 200})
    run = run_job(folder, 1, steps(60), SAVE, *GUARD, "--run.name=early", plan)
    assert run.code == 3
    assert "no good checkpoint from before step 3" in run.exit["reason"]


def test_nan_slow_rank_full_disk_and_flipped_bit_are_told_and_survived(folder: Path) -> None:
    plan = faults(
        {"kind": "nan-gradient", "step": 12, "rank": 1},
        # All of the steps that are compared at once, and long beside them on a busy machine too.
        {"kind": "slow", "step": 17, "until": 31, "rank": 1, "seconds": 0.5},
        {"kind": "disk-full", "step": 20, "rank": 1},
        {"kind": "flip-file", "step": 50, "rank": 1},
        # The save before is done by then, and this one not.
        {"kind": "kill", "step": 60, "rank": 0, "point": "save-before-rename"},
    )
    arguments = (
        steps(60), SAVE, "--stability.straggler_every=15", "--checkpoint.retry=0.1 s",
        "--run.name=many", plan,
    )  # fmt: skip
    first, second = (run_job(folder, 2, *arguments) for _ in range(2))
    assert (first.code, second.code) == (-9, 0), second.output
    (nan,) = first.events("skipped_update")
    assert (nan["step"], nan["ranks"], nan["reason"]) == (12, [1], "non-finite")
    assert {event["rank"] for event in first.events("straggler")} == {1}
    failed = first.events("checkpoint_failed")[0]
    assert failed["step"] == 20 and "rank 1" in failed["error"] and "No space" in failed["error"]
    assert any(20 < event["step"] < 30 for event in first.events("checkpoint")), "it was retried"
    assert "step-00000050 is bad, trying an earlier one" in second.output
    assert sorted(second.losses()) == list(range(1, 61))


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_run_whose_last_step_is_not_saved_is_not_done(folder: Path, asynchronous: str) -> None:
    plan = faults({"kind": "disk-full", "step": 20, "rank": 1})
    run = run_job(
        folder, 2, steps(20), SAVE, "--checkpoint.retry=0.01 s", plan,
        f"--checkpoint.asynchronous={asynchronous}", f"--run.name=last-{asynchronous}",
    )  # fmt: skip
    assert run.code == 1, run.output
    assert "the last checkpoint could not be saved" in run.exit["reason"]
    assert {event["step"] for event in run.events("checkpoint_failed")} == {20}


def test_a_run_that_cannot_save_stops_only_by_its_policy(folder: Path) -> None:
    plan = faults({"kind": "disk-full", "step": 1, "until": 99, "rank": 1})
    run = run_job(
        folder, 2, steps(60), SAVE, "--checkpoint.retry=0.01 s", "--checkpoint.max_failures=3",
        "--run.name=unsaved", plan,
    )  # fmt: skip
    assert run.code == 1
    assert "were not saved" in run.exit["reason"]
    assert len(run.events("checkpoint_failed")) >= 3
    assert max(run.losses()) >= 12


def test_scheduled_saves_wait_for_the_retry(folder: Path) -> None:
    """A full disk would use up all failures in as many steps."""
    plan = faults({"kind": "disk-full", "step": 1, "until": 11})
    run = run_job(
        folder, 1, steps(12), "--checkpoint.every=1 steps", "--checkpoint.retry=1 h",
        "--checkpoint.max_failures=2", "--checkpoint.asynchronous=false", "--run.name=full", plan,
    )  # fmt: skip
    assert run.code == 0, run.output
    assert [event["step"] for event in run.events("checkpoint_failed")] == [1]


def test_a_budget_that_ends_without_finite_figures_is_no_success(folder: Path) -> None:
    plan = faults({"kind": "nan-gradient", "step": 8, "until": 99})
    for _ in range(2):  # started again it ends the same way
        run = run_job(
            folder, 1, steps(12), "--checkpoint.every=5 steps", "--checkpoint.keep=1",
            "--run.name=spoilt", plan,
        )  # fmt: skip
        assert run.code == 3 and run.exit["code"] == 3, run.output
        assert "its last 5 updates were all refused" in run.exit["reason"]
        assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step-00000005"]
    assert "its last 5 updates" in (run.run_dir / "stop-report.md").read_text()


def test_a_budget_that_ends_in_spikes_is_no_success_and_keeps_its_weights(folder: Path) -> None:
    plan = faults({"kind": "corrupt-batch", "step": 57, "until": 60})
    arguments = (steps(60), SAVE, "--stability.window=32", "--run.name=end", plan)
    first, again = (run_job(folder, 1, *arguments) for _ in range(2))
    assert (first.code, again.code) == (3, 3), first.output + again.output
    assert "its last 4 updates were all refused" in first.exit["reason"]
    assert "already finished, but its last 4 updates" in again.exit["reason"]
    assert (first.run_dir / "checkpoints/step-00000060").is_dir()


def test_weights_that_overflow_are_not_saved(folder: Path) -> None:
    run = run_job(
        folder, 1, steps(6), "--checkpoint.every=1 steps", "--checkpoint.keep=1",
        "--optimizer.lr=1e38", "--optimizer.weight_decay=1e3", "--run.name=overflown",
    )  # fmt: skip
    assert run.code == 3, run.output
    assert [event["step"] for event in run.events("checkpoint_refused")] == [1]
    assert not list((run.run_dir / "checkpoints").glob("step-*"))
    assert "the weights are not finite" in run.output


@pytest.mark.parametrize(
    ("kind", "rank", "words"), [("hang", 1, "preparing the step"), ("freeze", 0, "not heard of")]
)
def test_a_hang_ends_the_job_and_names_the_culprit(
    folder: Path, kind: str, rank: int, words: str
) -> None:
    run = run_job(
        folder, 2, steps(60), SAVE, f"--run.name={kind}", "--stability.hang_after=1 s",
        "--stability.hang_after_first=20 s", faults({"kind": kind, "step": 25, "rank": rank}),
    )  # fmt: skip
    assert run.code == 1
    assert f"rank {rank} on" in run.exit["reason"] and words in run.exit["reason"]
    (event,) = run.events("hang")
    assert event["ranks"] == [rank]
    stacks = (run.run_dir / "logs/node-0.stacks").read_text()
    peer = stacks.split(f"{STACKS_OF} {1 - rank}")[1].split(STACKS_OF)[0]
    assert "train_step" in peer
    text = diagnosed(run)
    assert f"rank {rank} on" in text.split("likely cause:")[1]
    if kind == "hang":
        assert "_strike (training/stability/faults.py" in text


def test_a_killed_process_is_named_by_diagnose(folder: Path) -> None:
    plan = faults({"kind": "kill", "step": 5, "rank": 1})
    run = run_job(folder, 2, steps(20), "--run.name=killed", plan)
    assert run.code == -9
    cause = diagnosed(run).split("likely cause:")[1]
    assert "rank 1 on" in cause and "died in step" in cause


def test_silent_corruption_stops_the_run(folder: Path) -> None:
    plan = faults({"kind": "flip-weight", "step": 15, "rank": 1})
    run = run_job(
        folder, 2, steps(40), SAVE, "--parallel.zero_stage=0", "--stability.checksum_every=10",
        "--run.name=corrupt", plan,
    )  # fmt: skip
    assert run.code == 3, run.output
    (event,) = run.events("silent_corruption")
    assert (event["step"], event["ranks"]) == (20, [0, 1])


@pytest.mark.parametrize("step", [4, 8], ids=["midway", "in-the-last-step"])
def test_other_tokens_than_the_peers_stop_the_run(folder: Path, step: int) -> None:
    """On a first stage, which holds no loss: nothing else would show it."""
    plan = faults({"kind": "corrupt-batch", "step": step, "rank": 1})
    run = run_job(
        folder, 4, steps(8), "--parallel.tensor=2", "--parallel.pipeline=2",
        f"--run.name=other-{step}", plan,
    )  # fmt: skip
    assert run.code == 3, run.output
    (event,) = run.events("data_differs")
    assert (event["step"], event["samples"]) == (step, [8 * step - 8, 8 * step])
    assert event["ranks"] == [1]
    assert f"for step {step} rank 1 on" in run.exit["reason"]
    assert not list((run.run_dir / "checkpoints").glob("step-*"))


def test_processes_that_disagree_are_refused_and_named(folder: Path) -> None:
    run = run_job(
        folder, 2, steps(20), "--run.name=disagree", of_rank={1: ["--optimizer.lr=0.123"]}
    )
    assert 2 in run.codes
    assert "rank 1 on" in run.output and "optimizer.lr: 0.005 -> 0.123" in run.output
    assert not run.losses()
