"""The end of a run: nothing that comes after the outcome changes it, and nothing of it is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import NUM_STEPS, kills, read_events, read_rows, train

from triax.launcher.job import summary


def exit_of(run: Path) -> tuple[int, int]:
    ending = json.loads((run / "exit.json").read_text())
    return ending["code"], ending["step"]


def test_what_comes_after_the_outcome_never_changes_the_code(job: Path) -> None:
    run = job / "runs/a$b_{$"
    (run / "loss.png").mkdir(parents=True)
    (run / "events.jsonl").write_bytes(b"\xff\n")
    (run / "metrics.jsonl").write_bytes(b'{"step": Infinity}\n')
    (run / "exit.json.partial").mkdir()
    ended = train(job, "--run.name=a$b_{$", "--metrics.every=7")
    assert ended.code == 0, ended.text
    assert "Traceback" not in ended.text
    assert "lines that can't be read are left out: 1" in ended.out
    assert "loss plot    none: " in ended.out
    assert "exit.json can't be written" in ended.out
    assert "to resume " in ended.out
    assert not (run / "exit.json").exists()
    assert [row["step"] for row in read_rows(run)] == [7, 14, 21]


def test_a_run_killed_after_its_last_checkpoint_gets_its_end(job: Path) -> None:
    run = job / "runs/job"
    killed = train(job, kills(("save-done", NUM_STEPS, None)))
    assert killed.code < 0, killed.text
    (run / "loss.png").unlink(missing_ok=True)
    ended = train(job)
    assert ended.code == 0, ended.text
    assert "what its end owes is done now" in ended.out
    assert f"ended after step {NUM_STEPS}: the token budget is used up" in ended.out
    assert read_events(run, "evaluation")[-1]["step"] == NUM_STEPS
    assert (run / "loss.png").is_file()
    assert exit_of(run) == (0, NUM_STEPS)
    assert len(read_rows(run)) == NUM_STEPS
    again = train(job)
    assert (again.code, exit_of(run)) == (0, (0, NUM_STEPS))
    assert "this run is finished" in again.out and "ended after" not in again.out


def test_a_part_of_the_summary_that_fails_says_so() -> None:
    def fail() -> list[str]:
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")

    assert summary._or_why_not("sample", lambda: ["x"]) == ["x"]
    lines = summary._or_why_not("sample", fail)
    assert lines[0].startswith("sample       none: probability tensor")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", ["exit.json", "stop-report.md"])
def test_an_ending_that_cannot_be_forgotten_is_said(job: Path, name: str) -> None:
    (job / "runs/job" / name).mkdir(parents=True)
    ended = train(job)
    assert ended.code == 2, ended.text
    assert f"{name}: cannot be written" in ended.error


_TOO_LATE = """
import sys
from triax.data.read.integrity import Verification
from triax.launcher.train import main

end = Verification.__exit__
Verification.check = lambda self: None
Verification.__exit__ = lambda self, *error: (self.wait(), end(self, *error))
sys.exit(main(["run.toml", "--budget.tokens=256", "--metrics.tensorboard=false"]))
"""


def test_damage_that_is_found_behind_the_last_batch_is_told_at_the_end(job: Path) -> None:
    shard = job / "data/train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    python = [sys.executable, "-c", _TOO_LATE]
    ended = subprocess.run(python, cwd=job, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "warning: the run has read on beside damaged data: data/train-00000" in ended.stdout
    [event] = read_events(job / "runs/job", "damaged_data")
    assert event["step"] == 1 and "train-00000.bin: damaged" in event["reason"]
