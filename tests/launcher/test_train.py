"""One process of a run, without the job itself: who reports what, and how the process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

CONFIG = """
[run]
name = "test"
dir = "runs"
[model]
preset = "mini-10m"
[data]
sources = [{ path = "out/train" }]
seq_len = 64
prepare = { inputs = ["python-stdlib"], output = "out", vocab_size = 4096 }
[batch]
global_batch_size = 8
"""
WORKER = r"""
import os, sys, time
from triax.common.errors import UserError
from triax.launcher import train

if "slow-rank-0" in sys.argv[-1] and os.environ.get("RANK") == "0":
    time.sleep(1)

def run(config, environment, preflight):
    action = config.run.name
    if action == "one" and environment.rank == 1 or action == "all":
        raise UserError("the shard is gone")
    if action == "code":
        return 75
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(300)

train.run = run
sys.exit(train.main())
"""
LAUNCH = """
import sys
from triax.launcher.cluster.workers import launch
sys.exit(launch(2, "worker", sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(CONFIG)
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    (tmp_path / "launch.py").write_text(textwrap.dedent(LAUNCH))
    return tmp_path


def start(folder: Path, script: str, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, script, "run.toml", *overrides],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "override", "code", "message"),
    [
        ("worker.py", "--run.name=code", 75, ""),
        ("worker.py", "--run.name=all", 2, "triax: error: the shard is gone"),
        ("launch.py", "--run.name=all", 2, "triax: error: the shard is gone"),
        ("launch.py", "--run.name=one", 2, "triax: error: rank 1 on "),
        ("launch.py", "--batch.global_batch_size=7", 2, "triax: error: run.toml: 1 problem"),
        ("launch.py", "--model.slow-rank-0=7", 2, "triax: error: run.toml: 1 problem"),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(
    folder: Path, script: str, override: str, code: int, message: str
) -> None:
    process = start(folder, script, override)
    _, error = process.communicate(timeout=90)
    assert process.returncode == code, error
    assert error.startswith(message)
    # On a slow machine the second rank may repeat the first one's message.
    most = 0 if not message else 1 if script == "worker.py" else 2
    assert error.count("triax: error:") <= most
    assert "Traceback" not in error


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_workers_do_not_outlive_their_launcher(folder: Path) -> None:
    process = start(folder, "launch.py", "--run.name=sleep")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert any(line.startswith("found    triax: 2 processes on 1 node") for line in lines)
    pids = [int(line) for line in lines if line.strip().isdigit()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        for _ in range(200):
            if not any(map(alive, pids)):
                break
            time.sleep(0.05)
        assert not any(map(alive, pids))
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
