"""Batch jobs on a real SLURM cluster: two nodes with addresses of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, log_of, num_rows, wait_for, why_not
from small_run import command, losses, make_run

NUM_STEPS = 300
AWKWARD = "it's 50% $HOME; %j"
"""A run's name that only survives if it is quoted everywhere."""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run.toml`, and the run left alone, on two processes of this machine."""
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, NUM_STEPS, save_every=50)
    subprocess.run(
        [command("triax"), "train", "run.toml", "--nproc-per-node", "2"],
        cwd=folder, check=True, timeout=200, capture_output=True,
    )  # fmt: skip
    return folder


def wait_for_steps(cluster: Cluster, run_dir: Path, job: str, steps: int) -> None:
    wait_for(
        f"step {steps} of job {job} ({cluster.state(job)}): {log_of(run_dir, job)[-2000:]}",
        lambda: num_rows(run_dir) >= steps, 120,
    )  # fmt: skip


def wait_for_end(cluster: Cluster, run_dir: Path, job: str) -> str:
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    try:
        wait_for(f"job {job} to end", lambda: cluster.state(job) in ended, 150)
    except AssertionError as error:
        raise AssertionError(f"{error}: {log_of(run_dir, job)[-3000:]}") from None
    return cluster.state(job)


def test_a_chain_hands_the_run_on_and_ends_with_it(cluster: Cluster, folder: Path) -> None:
    run_dir = folder / "runs" / AWKWARD
    first, second, third = cluster.submit(folder, "--chain", "3", f"--run.name={AWKWARD}")
    wait_for_steps(cluster, run_dir, first, 30)
    # What SLURM does ahead of the time limit.
    cluster.run("scancel", "--batch", "--signal=USR1", first)
    assert wait_for_end(cluster, run_dir, third) == "COMPLETED"
    assert cluster.state(second) == "COMPLETED"
    said = [log_of(run_dir, job) for job in (first, second, third)]
    assert "srun: 2 processes on 2 nodes, rank 0 on node1" in said[0]
    assert "interface eth0" in said[0]
    assert "the next job of the chain goes on (this was 1 of 3)" in said[0]
    assert "going on after step" in said[1]
    assert "has ended already, with code 0" in said[2]
    assert losses(folder, AWKWARD) == losses(folder, "alone")


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, folder: Path) -> None:
    run_dir = folder / "runs" / "cancelled"
    (job,) = cluster.submit(folder, "--run.name=cancelled")
    wait_for_steps(cluster, run_dir, job, 10)
    cluster.run("scancel", job)
    assert wait_for_end(cluster, run_dir, job) == "CANCELLED"
    assert num_rows(run_dir) < NUM_STEPS
    assert list((run_dir / "checkpoints").glob("step-*")), log_of(run_dir, job)


def test_a_preempted_job_requeues_itself_and_outlives_a_node(
    cluster: Cluster, folder: Path
) -> None:
    run_dir = folder / "runs" / "preempted"
    (job,) = cluster.submit(folder, "--run.name=preempted")
    wait_for_steps(cluster, run_dir, job, 30)
    cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null",
        "--wrap=sleep 1",
    )  # fmt: skip
    wait_for("the requeue", lambda: "; requeued" in log_of(run_dir, job), 60)
    saved = num_rows(run_dir)
    wait_for_steps(cluster, run_dir, job, saved + 60)
    cluster.crash("node2")
    assert wait_for_end(cluster, run_dir, job) == "COMPLETED"
    said = log_of(run_dir, job)
    assert f"going on after step {saved} " in said
    assert "nodes left: node1" in said
    assert "triax: 1 of 2 processes run" in said
    assert losses(folder, "preempted") == pytest.approx(losses(folder, "alone"), rel=1e-4)
    cluster.repair()


def test_a_job_outlives_the_node_that_runs_its_script(cluster: Cluster, folder: Path) -> None:
    run_dir = folder / "runs" / "headless"
    (job,) = cluster.submit(folder, "--run.name=headless")
    wait_for_steps(cluster, run_dir, job, 60)
    cluster.crash("node1")
    assert wait_for_end(cluster, run_dir, job) == "COMPLETED"
    said = log_of(run_dir, job)
    assert "start 2, on node2" in said
    assert "going on after step 50 " in said
    assert losses(folder, "headless") == pytest.approx(losses(folder, "alone"), rel=1e-4)
    cluster.repair()


def test_a_signal_that_comes_before_the_ranks_can_answer_is_kept(
    cluster: Cluster, folder: Path
) -> None:
    """As SLURM sends it by the clock, to a job whose start takes long."""
    run_dir = folder / "runs" / "early"
    (job,) = cluster.submit(folder, "--run.name=early")
    wait_for("the start", lambda: "start 1" in log_of(run_dir, job), 60)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    wait_for("the requeue", lambda: "requeued" in log_of(run_dir, job), 120)
    assert "saved; requeued" in log_of(run_dir, job), log_of(run_dir, job)
    assert list((run_dir / "checkpoints").glob("step-*"))
    cluster.run("scancel", job)
