"""What a running job's processes listen to: nothing that other machines reach, and nothing that
takes a pickle from other users of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jobs import finish, read_rows, start
from ports import free_port
from sockets import family_of, is_loopback, listening

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ENDLESS = ("run.toml", "--budget.tokens=10M", "--checkpoint.every=none", "--eval.every=none")
ATTACK = """
import base64, os, pickle, sys, threading, time
from datetime import timedelta
import torch.distributed as dist

class Evil:
    def __reduce__(self):
        return os.system, ("touch " + sys.argv[1],)

def attack(port):
    try:
        store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=3))
        keys = store.list_keys() if hasattr(store, "list_keys") else []
    except Exception:
        return
    print("a store answers at", port, "with", keys, flush=True)
    for key in keys:
        store.set(key, base64.b64encode(pickle.dumps(Evil())))

threads = [threading.Thread(target=attack, args=(int(port),)) for port in sys.argv[2:]]
for thread in threads:
    thread.daemon = True
    thread.start()
end = time.monotonic() + 8
for thread in threads:
    thread.join(max(0, end - time.monotonic()))
os._exit(0)
"""


def attacked(ports: Sequence[int], mark: Path) -> str:
    """Write pickles into every store that answers at a port; returns what answered."""
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, str(mark), *map(str, ports)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_one_machine_s_job_listens_on_loopback_and_takes_no_pickle(job: Path) -> None:
    process = start(job, "triax", "train", *ENDLESS, "--nproc-per-node", "2")
    try:
        wait_for(lambda: len(read_rows(job / "runs/job")) >= 2, "no step")
        found = listening(family_of(process.pid))
        assert found, "gloo listens for its peers"
        assert all(is_loopback(address) for address, _ in found), found
        mark = job / "pwned"
        assert attacked([port for _, port in found], mark) == ""
        rows = len(read_rows(job / "runs/job"))
        # torch's agents look every five seconds at what stands in their store.
        time.sleep(6)
        assert not mark.exists()
        wait_for(lambda: len(read_rows(job / "runs/job")) > rows, "the attack stopped the job")
    finally:
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
    assert ended.code == 75, ended.text


@pytest.mark.parametrize("launcher", ["by hand", "mpirun"])
def test_a_rank_0_that_listens_does_so_on_loopback(job: Path, launcher: str) -> None:
    """Also where another launcher's variables name this machine's own name as the address."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    if launcher == "mpirun":
        names = tuple(
            f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")
        )
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "triax.launcher.train", *ENDLESS],
            cwd=job, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ
            | dict(zip(names, (str(rank), str(rank), "2", "2"), strict=True))
            | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for port in [free_port()]
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        wait_for(lambda: len(read_rows(job / "runs/job")) >= 1, "no step")
        found = {socket for each in processes for socket in listening(family_of(each.pid))}
        assert found
        assert all(is_loopback(address) for address, _ in found), found
    finally:
        for each in processes:
            each.kill()
            each.wait(20)
