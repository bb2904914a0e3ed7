"""How processes meet: who is missing, who is a stranger, and words that former ones have left."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ports import free_port

from triax.common.errors import UserError
from triax.launcher.cluster import rendezvous as meeting
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.rendezvous import Job

HERE = Environment(
    rank=0, local_rank=0, world_size=2, local_world_size=2, node_rank=0, hostname="here",
    launcher="mpirun", num_nodes=1, master_addr="127.0.0.1", master_port=1,
)  # fmt: skip

JOB = Job("/runs/ours", 17)
OTHER = Job("/runs/theirs", 18)


def ranks(environment: Environment) -> list[Environment]:
    return [replace(environment, rank=rank) for rank in range(environment.world_size)]


def all_meet(environments: list[Environment], seconds: float = 20, job: Job = JOB) -> list[Any]:
    with ThreadPoolExecutor(len(environments)) as pool:
        return list(pool.map(lambda each: meeting.meet(each, seconds, job), environments))


@pytest.mark.parametrize("by", ["file", "port"])
def test_all_share_one_store(by: str, tmp_path: Path) -> None:
    here = replace(HERE, world_size=3, local_world_size=3, master_port=free_port())
    if by == "file":
        here = replace(here, launcher="triax", meeting_file=str(tmp_path / "meeting"))
    first, second, third = all_meet(ranks(here))
    first.set("a", "b")
    assert second.get("a") == third.get("a") == b"b"


def test_the_missing_are_named() -> None:
    here = replace(HERE, master_port=free_port(), world_size=4, local_world_size=4)
    with pytest.raises(RuntimeError, match=r"rank 0 of 4 .* missing are ranks 1, 2, 3\. Did all"):
        meeting.meet(here, 1.0, JOB)


def test_words_of_former_processes_are_not_heard() -> None:
    """torchrun's agent keeps its store when it starts the processes again."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    here = replace(HERE, launcher="torchrun", agent_listens=True, master_port=server.port)
    # Rank 1 came and was killed, with all the others, before rank 0 had read out anything.
    server.set("triax/here/1", "a former word")
    meetings = []
    for _ in range(3):
        stores = all_meet(ranks(here))
        assert not stores[0].check(["default_pg/0"])
        stores[0].set("default_pg/0", "an address that is gone after the next start")
        assert stores[1].get("default_pg/0").startswith(b"an address")
        meetings.append(stores[0])
    server.set_timeout(timedelta(seconds=1))


class CountingStore:
    """A store in memory that knows the longest value that was read."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.most_bytes = 0

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        value = self.values[key].encode()
        self.most_bytes = max(self.most_bytes, len(value))
        return value


def test_what_a_rank_reads_and_asks_does_not_grow_with_their_number() -> None:
    store, num_ranks = CountingStore(), 40
    environments = ranks(replace(HERE, world_size=num_ranks, local_world_size=num_ranks))
    end = time.monotonic() + 20
    with ThreadPoolExecutor(num_ranks) as pool:
        names = pool.map(lambda each: meeting._call_the_roll(each, store, end, JOB), environments)
    assert len(set(names)) == 1
    assert store.most_bytes < 128
    for world_size in (256, 1024, 8192):
        assert world_size / meeting._pause(world_size) == 128 / meeting._pause(2)


def test_another_job_at_the_port_is_told_and_does_not_disturb() -> None:
    """Two jobs of as many processes, given the same port by hand."""
    here = replace(HERE, world_size=3, local_world_size=3, master_port=free_port())
    zero, one, two = ranks(here)
    with ThreadPoolExecutor(4) as pool:
        ours = [pool.submit(meeting.meet, each, 20, JOB) for each in (zero, one)]
        # Before the roll is complete, and in the place of a rank that has come.
        with pytest.raises(
            UserError, match=r"another job meets here, that of /runs/ours; .*theirs"
        ):
            pool.submit(meeting.meet, one, 20, OTHER).result(15)
        ours.append(pool.submit(meeting.meet, two, 20, JOB))
        stores = [each.result(20) for each in ours]
        # And after it.
        with pytest.raises(UserError, match=r"/runs/ours; .* set MASTER_PORT"):
            pool.submit(meeting.meet, two, 20, OTHER).result(15)
    stores[0].set("a", "b")
    assert stores[1].get("a") == stores[2].get("a") == b"b"


def test_a_former_start_of_another_run_is_no_other_job() -> None:
    """torchrun's agent keeps its store, and the config may name another run by now."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    here = replace(HERE, launcher="torchrun", agent_listens=True, master_port=server.port)
    for job in (OTHER, JOB):
        all_meet(ranks(here), job=job)
    with pytest.raises(RuntimeError, match="another job meets here, that of /runs/ours"):
        meeting.meet(ranks(here)[1], 1.0, OTHER)
    server.set_timeout(timedelta(seconds=1))


def test_a_job_is_known_by_its_folder_wherever_that_is_mounted(tmp_path: Path) -> None:
    run, link = tmp_path / "run", tmp_path / "link"
    assert Job.of(run) == Job(str(run), None)
    assert not Job.of(run).is_same(Job.of(link))
    run.mkdir()
    link.symlink_to(run)
    assert Job.of(run).is_same(Job.of(link)) and Job.of(run).is_same(Job(str(run), None))
    assert not Job.of(run).is_same(Job.of(tmp_path))


def silent(connection: socket.socket) -> None:
    connection.recv(1000)
    time.sleep(10)


def as_ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    time.sleep(10)


def as_web(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()


@contextlib.contextmanager
def stranger(behaviour: Callable[[socket.socket], None]) -> Iterator[int]:
    """Someone who listens; gives the port."""

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            behaviour(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [(silent, "it says nothing"), (as_ssh, "SSH-2.0-OpenSSH_9.2"), (as_web, "HTTP/1.1 400 Bad")],
)
def test_a_stranger_at_the_port_is_told(
    behaviour: Callable[[socket.socket], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 2.0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with stranger(behaviour) as port:
        there = replace(HERE, rank=1, local_rank=1, master_port=port)
        with pytest.raises(UserError, match="something answers that is not rank 0") as caught:
            meeting.meet(there, 30.0, JOB)
        assert words in str(caught.value)
        # Rank 0 finds the port taken; under srun the next start meets at another one.
        with pytest.raises(UserError, match=r"rank 0 can't listen at .* set MASTER_PORT"):
            meeting.meet(replace(HERE, master_port=port), 5.0, JOB)
        with pytest.raises(RuntimeError, match="rank 0 can't listen"):
            meeting.meet(replace(HERE, launcher="srun", master_port=port), 5.0, JOB)
    # The stranger's own connections may last a while.
    assert len(os.listdir("/proc/self/fd")) < before + 15, "descriptors are left open"  # noqa: PTH208


def test_nobody_at_the_port_is_told_in_time() -> None:
    there = replace(HERE, rank=1, local_rank=1, master_port=free_port())
    with pytest.raises(RuntimeError, match=r"could not meet the others at .*nobody listens there"):
        meeting.meet(there, 1.0, JOB)
