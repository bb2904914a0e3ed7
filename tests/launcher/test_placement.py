"""How many processes run on the nodes that are left, and where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.launcher.slurm.placement import Placement, ending_of, largest_world
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.stages import schedule_problem
from triax.training.config import BatchConfig
from triax.training.records.run_directory import RunDirectory

SMALL = st.integers(1, 6)


@settings(deadline=None)
@given(
    SMALL, SMALL, SMALL, SMALL, st.integers(1, 48), st.integers(0, 100),
    st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b", "zbv-zero-bubble"]),
)  # fmt: skip
def test_it_is_the_largest_that_divides_the_global_batch(
    tensor: int, pipeline: int, replicate: int, micro: int, batch: int, available: int,
    schedule: Any,
) -> None:  # fmt: skip
    parallel = ParallelConfig(
        tensor=tensor, pipeline=pipeline, replicate=replicate, pipeline_schedule=schedule
    )

    def fits(world: int) -> bool:
        ranks, remainder = divmod(world, tensor * pipeline)
        if remainder or ranks % replicate or batch % (micro * ranks):
            return False
        return pipeline == 1 or not schedule_problem(parallel, batch // (micro * ranks))

    sizes = BatchConfig(global_batch_size=batch, micro_batch_size=micro)
    expected = max((world for world in range(1, available + 1) if fits(world)), default=None)
    found = largest_world(sizes, parallel, available)
    assert found == expected
    if found is not None:
        Layout.of(parallel, found)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_full_nodes_come_first_and_the_rest_is_named(
    num_nodes: int, per_node: int, data: st.DataObject
) -> None:
    nodes = [f"n{number}" for number in range(num_nodes)]
    num_processes = data.draw(st.integers(1, num_nodes * per_node))
    placement = Placement.of(num_processes, nodes, per_node)
    assert (len(placement.used) - 1) * per_node < num_processes <= len(placement.used) * per_node
    partly = [name for name in placement.idle if "(" in name]
    assert len(partly) == (num_processes % per_node != 0)
    assert [*placement.used, *placement.idle[len(partly) :]] == nodes


def test_a_lost_gpu_is_named() -> None:
    batch = BatchConfig(global_batch_size=12)
    assert largest_world(batch, ParallelConfig(), 7) == 6
    assert Placement.of(6, ["a", "b"], 4).idle == ("b (2 of 4)",)
    assert Placement.of(4, ["a", "b"], 4).idle == ("b",)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"code": 0}', 0), ('{"code": 3, "reason": "x"}', 3), ('{"code": 2}', 2),
        ('{"code": 75}', None), ('{"code": 1}', None), ("[]", None), ("{", None), ("", None),
    ],
)  # fmt: skip
def test_a_run_that_has_ended_is_known_by_its_exit_file(
    tmp_path: Path, text: str, code: int | None
) -> None:
    assert ending_of(RunDirectory(tmp_path)) is None
    (tmp_path / "exit.json").write_text(text)
    assert ending_of(RunDirectory(tmp_path)) == code


CONFIG = """
[run]
name = "test"
[model]
preset = "mini-10m"
[data]
sources = [{ path = "out/train" }]
seq_len = 64
prepare = { inputs = ["python-stdlib"], output = "out", vocab_size = 4096 }
[batch]
global_batch_size = 8
"""


def place(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.toml").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "-m", "triax.launcher.slurm.placement", "run.toml", *argv],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_script_learns_where_to_start_and_when_not_to(tmp_path: Path) -> None:
    three = ("--nodes", "a", "b", "c", "--per-node", "2", "--wanted", "8")
    left = place(tmp_path, *three)
    assert (left.returncode, left.stdout) == (0, "4 a,b\n")
    assert "idle: c" in left.stderr
    few = place(tmp_path, *three, "--parallel.replicate=8")
    assert (few.returncode, few.stdout) == (75, ""), few.stderr
    assert "too few" in few.stderr
    wrong = place(tmp_path, *three, "--batch.global_batch_size=9")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    run = tmp_path / "runs" / "test"
    run.mkdir(parents=True)
    (run / "exit.json").write_text(json.dumps({"code": 3}))
    ended = place(tmp_path, *three, "--unless-ended")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert place(tmp_path, *three).returncode == 0
