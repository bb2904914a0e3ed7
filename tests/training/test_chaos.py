"""A run under a drawn plan of faults ends by itself at its budget, with the loss curve it should.

The reference is a run of the same data that nobody kills: bitwise equal everywhere, since what
the faults of the data do (skipped updates) is part of both. Against the clean run, whose data is
sound too, the curve is equal up to the first bad batch.

    pytest -m chaos -s                # long: hundreds of steps, prints the table of docs/
    TRIAX_CHAOS_SEED=7 pytest ...     # another time the same plan
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rehearsal import Ended, faults, run_job, steps, write_config

SAVE_POINTS = (
    "save-staged", "save-shard-written", "save-before-fsync", "save-before-manifest",
    "save-before-rename", "save-done",
)  # fmt: skip
OF_DATA = ("nan-gradient", "corrupt-batch")


@dataclass(frozen=True)
class Scale:
    """How long a chaos run is, and the least of each fault."""

    num_processes: int
    num_steps: int
    save_every: int
    least: dict[str, int]
    has_rollback: bool


SHORT = Scale(
    2, 90, 10,
    {"kill": 1, "kill-in-save": 1, "disk-full": 1, "flip-file": 1, "nan-gradient": 2,
     "corrupt-batch": 1},
    has_rollback=False,
)  # fmt: skip
LONG = Scale(
    4, 400, 10,
    {"kill": 4, "kill-in-save": 6, "exception": 3, "hang": 2, "freeze": 2, "disk-full": 3,
     "flip-file": 3, "nan-gradient": 6, "corrupt-batch": 4},
    has_rollback=True,
)  # fmt: skip


def draw_plan(scale: Scale, rng: random.Random) -> list[dict[str, Any]]:
    """At least as many faults of each kind as the scale says, at other steps each time.

    Faults of the process keep clear of the last third in a run with a rollback: a checkpoint that
    one of them damages is another target than the reference's.
    """
    end = scale.num_steps * 2 // 3 if scale.has_rollback else scale.num_steps - 5
    saves = list(range(scale.save_every, end - scale.save_every, scale.save_every))
    plan: list[dict[str, Any]] = []
    for kind, least in scale.least.items():
        for _ in range(least + rng.randrange(2)):
            rank, save = rng.randrange(scale.num_processes), rng.choice(saves)
            step = rng.randrange(5, end)
            if kind == "kill-in-save":
                point = rng.choice(SAVE_POINTS)
                plan.append({"kind": "kill", "step": save, "rank": rank, "point": point})
            elif kind == "disk-full":
                plan.append({"kind": kind, "step": save, "rank": rank})
            elif kind == "flip-file":
                # Only a run that is started again looks at its files. Without another checkpoint to
                # go back to it refuses to begin anew, rightly.
                save = rng.choice(saves[3:])
                plan.append({"kind": kind, "step": save, "rank": rank})
                plan.append({"kind": "kill", "step": save + rng.randrange(3, 7), "rank": rank})
            elif kind == "corrupt-batch":
                step = rng.randrange(40, end)
                plan.append({"kind": kind, "step": step, "until": step + rng.randrange(2)})
            else:
                plan.append({"kind": kind, "step": step, "rank": rank})
    if scale.has_rollback:
        step = rng.randrange(scale.num_steps * 3 // 4, scale.num_steps * 7 // 8)
        plan.append({"kind": "corrupt-batch", "step": step, "until": step + 8})
    rng.shuffle(plan)
    return plan


def arguments(scale: Scale, name: str, plan: list[dict[str, Any]]) -> tuple[str, ...]:
    return (
        f"--run.name={name}", steps(scale.num_steps),
        f"--checkpoint.every={scale.save_every} steps", "--checkpoint.retry=0.2 s",
        "--stability.window=32", "--stability.max_consecutive_skips=6",
        "--stability.hang_after=3 s", "--stability.hang_after_first=20 s", faults(*plan),
    )  # fmt: skip


def run_to_its_end(
    folder: Path, scale: Scale, name: str, plan: list[dict[str, Any]]
) -> list[Ended]:
    """Start the job again until it has nothing more to do, as a supervisor would."""
    sessions = []
    for _ in range(2 * len(plan) + 2):
        sessions.append(run_job(folder, scale.num_processes, *arguments(scale, name, plan)))
        if sessions[-1].code == 0:
            return sessions
        assert sessions[-1].code != 2, sessions[-1].output
    raise AssertionError(f"it never ended: {sessions[-1].output}")


def check(folder: Path, scale: Scale) -> None:
    seed = int(os.environ.get("TRIAX_CHAOS_SEED", time.time_ns() % 2**32))
    plan = draw_plan(scale, random.Random(seed))
    print(f"\nTRIAX_CHAOS_SEED={seed}\n{json.dumps(plan)}")
    write_config(folder)
    bad_data = [fault for fault in plan if fault["kind"] in OF_DATA]
    reference = run_to_its_end(folder, scale, "reference", bad_data)
    assert len(reference) == 1
    clean = run_to_its_end(folder, scale, "clean", [])[0]
    assert not clean.events("skipped_update"), "a false alarm"
    sessions = run_to_its_end(folder, scale, "chaos", plan)
    chaos = sessions[-1]
    assert chaos.exit["reason"] == "the token budget is used up"
    assert list(chaos.losses()) == list(range(1, scale.num_steps + 1))
    assert chaos.rows()[-1]["tokens"] == clean.rows()[-1]["tokens"]
    first_bad = min(fault["step"] for fault in bad_data)
    for step, loss in chaos.losses().items():
        wanted = reference[0].losses()[step]
        assert loss == wanted or (loss != loss and wanted != wanted), f"step {step}"
        if step < first_bad:
            assert loss == clean.losses()[step], f"step {step}"
    skipped = {row["step"] for row in chaos.rows() if row["skipped"]}
    assert skipped == {row["step"] for row in reference[0].rows() if row["skipped"]}
    if scale.has_rollback:
        assert len(reference[0].events("rollback")) == 1
    print(table(scale, plan, sessions, reference[0]))


def table(scale: Scale, plan: list[dict[str, Any]], sessions: list[Ended], reference: Ended) -> str:
    """What was tried and what it cost, as Markdown."""
    struck: Counter[str] = Counter()
    for rank_file in (sessions[-1].run_dir / "faults").glob("rank-*.txt"):
        struck.update(name.split(":")[0] for name in set(rank_file.read_text().split()))
    planned = Counter(fault["kind"] for fault in plan)
    lost = sum(start["num_steps_lost"] for start in sessions[-1].events("start"))
    lines = ["| fault | planned | struck |", "|---|---|---|"]
    for kind, count in sorted(planned.items()):
        often = "with its data" if kind in (*OF_DATA, "disk-full") else str(struck[kind])
        lines.append(f"| {kind} | {count} | {often} |")
    seconds = sum(session.seconds for session in sessions)
    lines.append(
        f"\n{scale.num_processes} processes, {scale.num_steps} steps: survived all in "
        f"{len(sessions)} sessions; {lost} steps were done again; {seconds:.0f} s instead of "
        f"{reference.seconds:.0f} s"
    )
    return "\n".join(lines)


def test_a_short_run_under_many_faults(tmp_path: Path) -> None:
    check(tmp_path, SHORT)


@pytest.mark.chaos
def test_a_long_run_under_many_faults(tmp_path: Path) -> None:
    check(tmp_path, LONG)
