"""What a running job's processes listen to: nothing that other machines reach, and nothing that
takes a pickle from other users of this one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jobs import finish, read_rows, start, work
from ports import free_port
from sockets import family_of, is_loopback, listening, note_stores
from warm import fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ENDLESS = ("run.toml", "--budget.tokens=10M", "--checkpoint.every=none", "--eval.every=none")


def stores_at(ports: Sequence[int], note: Path) -> str:
    """The ports at which a store answers; torch's agents unpickle what strangers leave in one."""
    process = fork(note_stores, ports, note)
    process.join(60)
    return note.read_text()


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
        assert stores_at([port for _, port in found], job / "stores") == ""
        rows = len(read_rows(job / "runs/job"))
        wait_for(lambda: len(read_rows(job / "runs/job")) > rows, "the visit stopped the job")
    finally:
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
    assert ended.code == 75, ended.text


@pytest.mark.parametrize("launcher", ["by hand", "mpirun"])
def test_a_rank_0_that_listens_does_so_on_loopback(job: Path, launcher: str) -> None:
    """Also where another launcher's variables name this machine's own name as the address."""
    names: tuple[str, ...] = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    if launcher == "mpirun":
        names = tuple(
            f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")
        )
    port = free_port()
    processes = [
        fork(
            work,
            job,
            dict(zip(names, (str(rank), str(rank), "2", "2"), strict=True))
            | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
            job / f"rank-{rank}",
            ENDLESS,
        )
        for rank in (0, 1)
    ]
    try:
        wait_for(lambda: len(read_rows(job / "runs/job")) >= 1, "no step")
        found = {socket for each in processes for socket in listening(family_of(each.pid or 0))}
        assert all(is_loopback(address) for address, _ in found), found
        assert stores_at([port for _, port in found], job / "stores") == str(port)
    finally:
        for each in processes:
            each.kill()
            each.join(20)
