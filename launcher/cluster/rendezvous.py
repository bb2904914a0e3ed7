"""How a job's processes find each other: the store in which they leave word, and a roll call.

Rank 0 listens where the job's other processes reach it and, as far as that can be told, nowhere
else: on one machine only there. What stands in the store is never unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from triax.common.errors import UserError
from triax.launcher.cluster.environment import LOOPBACK, Environment
from triax.launcher.cluster.network import (
    SAME_MACHINE_SECONDS,
    are_loopback,
    loopback_error,
    resolve,
    who_answers,
)

_ANSWER_SECONDS = 60.0
"""How long rank 0 may take to answer once it is connected."""
_POLL_SECONDS = 0.02
_RANKS_PER_POLL = 128
"""So many may ask that often. More ask less often, or rank 0 would wait behind their questions."""
_MAX_NAMED = 8

Store = Any
"""torch.distributed's `Store`, which has no types."""


@dataclass(frozen=True)
class Job:
    """What tells one job from another that meets at the same place.

    Machines may see one folder by several paths; its number on the file system they share is one.
    """

    folder: str
    """The run directory's absolute path, or what the job is instead of a run."""
    number: int | None
    """Of the folder, where there is one."""

    @staticmethod
    def of(run_dir: Path) -> Job:
        """The job that trains in a run directory."""
        return Job(os.path.abspath(run_dir), _number_of(run_dir))  # noqa: PTH100

    def is_same(self, other: Job) -> bool:
        """Whether the other is this job, told of itself perhaps on another machine."""
        return self.folder == other.folder or (
            self.number is not None and self.number == other.number
        )


def _number_of(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def meet(environment: Environment, timeout_seconds: float, job: Job) -> Store:
    """A store that all of the job's processes share and nobody has written to; waits for all.

    Raises:
        UserError: there is no way to rank 0, the port is taken, or a stranger or another job
            answers at it.
        RuntimeError: some processes didn't come in time, or were lost on the way.
    """
    if environment.launcher == "single":
        return dist.HashStore()  # type: ignore[attr-defined]
    # Other nodes give up after that time, and can't tell us that they do.
    is_lonely = (
        environment.num_nodes > 1
        and environment.master_addr != environment.hostname
        and are_loopback(resolve(environment.master_addr))
    )
    if is_lonely:
        timeout_seconds = min(timeout_seconds, 2 * SAME_MACHINE_SECONDS)
    end = time.monotonic() + timeout_seconds
    try:
        store = _open(environment, end)
        store.set_timeout(timedelta(seconds=timeout_seconds))
        return dist.PrefixStore(_call_the_roll(environment, store, end, job), store)  # type: ignore[attr-defined]
    except (dist.DistError, TimeoutError) as error:
        if is_lonely:
            raise loopback_error(environment) from error
        # Not the user's mistake for sure: a node may have died, and the job is worth a restart.
        raise RuntimeError(_unmet(environment, error)) from error


def _open(environment: Environment, end: float) -> Store:
    if environment.meeting_file:
        return dist.FileStore(environment.meeting_file, environment.world_size)  # type: ignore[attr-defined]
    if environment.agent_listens:
        return _connect(environment, environment.master_addr, end)
    host = LOOPBACK if environment.num_nodes == 1 else environment.master_addr
    if environment.rank == 0:
        listener, host = _listen(environment)
        return dist.TCPStore(  # type: ignore[attr-defined]
            host, environment.master_port, is_master=True, wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
    return _connect(environment, host, end)


def _listen(environment: Environment) -> tuple[socket.socket, str]:
    """A socket that listens for the job's processes, and the host at which it does.

    It listens at this machine's own address that MASTER_ADDR means. Where that is loopback or not
    this machine's, the others know rank 0 by some other address: then it listens at all.
    """
    port, host = environment.master_port, environment.master_addr
    addresses = [LOOPBACK]
    if environment.num_nodes > 1:
        addresses = [item for item in resolve(host) if not are_loopback([item])]
        if not addresses and host != environment.hostname:
            addresses = resolve(host)
    for address in addresses:
        try:
            return _bound(address, port), address
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise _taken(environment, error) from None
    try:
        return _bound("", port), LOOPBACK
    except OSError as error:
        raise _taken(environment, error) from None


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not address and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((address, port), family=family, backlog=2048)


def _connect(environment: Environment, host: str, end: float) -> Store:
    """The store that rank 0, or torchrun's agent, keeps at the host.

    Raises:
        TimeoutError: nobody listens there until the end.
        UserError: someone else does.
    """
    port = environment.master_port
    _wait_for_listener(host, port, end)
    # A stranger may never answer, and torch waits for one byte without end.
    made: list[Store] = []
    failed: list[Exception] = []

    def make() -> None:
        try:
            patience = timedelta(seconds=_ANSWER_SECONDS)
            made.append(dist.TCPStore(host, port, timeout=patience))  # type: ignore[attr-defined]
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=make, daemon=True)
    with _torch_silenced():
        thread.start()
        thread.join(max(1.0, min(_ANSWER_SECONDS, end - time.monotonic())))
        while thread.is_alive():
            _hang_up(host, port)
            thread.join(0.2)
    if made:
        return made[0]
    answer = who_answers(host, port)
    if answer is None:
        raise TimeoutError(f"rank 0 was lost: {str(failed[0]).partition(chr(10))[0]}")
    raise _not_ours(
        environment,
        f"at {host}:{port} something answers that is not rank 0 of this job ({answer})",
    )


def _wait_for_listener(host: str, port: int, end: float) -> None:
    while True:
        try:
            with socket.create_connection((host, port), max(0.1, min(5.0, end - time.monotonic()))):
                return
        except OSError as error:
            if time.monotonic() >= end:
                raise TimeoutError(f"nobody listens there ({error})") from None
            time.sleep(0.1)


def _hang_up(host: str, port: int) -> None:
    """End this process's connections to a stranger: only so torch's wait for it comes to an end."""
    addresses = {item[4][0] for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    for entry in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            descriptor = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue  # its copy would stay open, as no socket could take it over
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                peer, peer_port, *_ = connection.getpeername()
                if peer_port == port and peer.removeprefix("::ffff:") in addresses:
                    connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _torch_silenced() -> Iterator[None]:
    """Without torch's stack traces on stderr, from C++: what went wrong is said here in words."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _taken(environment: Environment, error: OSError) -> Exception:
    return _not_ours(
        environment,
        f"rank 0 can't listen at {environment.master_addr}:{environment.master_port} "
        f"({error.strerror})",
    )


def _not_ours(environment: Environment, what: str) -> Exception:
    """An error that the user has to mend; under srun the next start meets at another port."""
    if environment.launcher == "srun":
        return RuntimeError(what)
    return UserError(
        f"{what}: set MASTER_PORT to a port that nothing else on {environment.master_addr} uses "
        "(torchrun and deepspeed: --master-port or --master_port), or end what uses it"
    )


def _call_the_roll(environment: Environment, store: Store, end: float, job: Job) -> str:
    """Wait until every rank knows that all are there; returns a name for this meeting.

    torchrun's agent keeps its store when it starts the processes again, with the words that the
    former ones left there. So each rank brings a word of its own, and rank 0 calls each by its word
    until all have heard it: what a former one has left is heard by nobody. What a rank reads
    doesn't grow with their number. A call says too whose job it is: two may have been given the
    same port.

    Raises:
        TimeoutError: some don't come until the end; rank 0 names them.
        UserError: it is another job that meets here.
    """
    rank = str(environment.rank)
    if environment.rank == 0:
        return _call_all(environment.world_size, store, end, job)
    word, said_after, other = secrets.token_hex(8), "", None
    store.set(f"triax/here/{rank}", word)
    pause, call, heard = _pause(environment.world_size), f"triax/call/{rank}", None
    while True:
        if store.check([call]):
            name, heard, *caller = json.loads(store.get(call))
            other = _other(Job(*caller), job)
            # Of an agent's store it may be a former start's: not where it has our word.
            if other is not None and (heard == word or not environment.agent_listens):
                raise _not_ours(environment, other)
            if heard == word:
                store.set(f"triax/heard/{rank}", name)
                return str(name)
            if heard not in (None, said_after):  # who has come in our place goes away again
                store.set(f"triax/here/{rank}", word)
                said_after = heard
        if time.monotonic() >= end:
            raise TimeoutError(other or "rank 0 didn't call")
        time.sleep(pause)


def _pause(world_size: int) -> float:
    """Seconds between two questions of a rank, which all go to one store."""
    return _POLL_SECONDS * max(1.0, world_size / _RANKS_PER_POLL)


def _other(caller: Job, job: Job) -> str | None:
    if caller.is_same(job):
        return None
    return f"another job meets here, that of {caller.folder}; this process is of {job.folder}"


def _call_all(world_size: int, store: Store, end: float, job: Job) -> str:
    name, words = secrets.token_hex(8), dict[str, str]()
    missing = [str(rank) for rank in range(1, world_size)]
    while missing:
        came = [rank for rank in missing if store.check([f"triax/here/{rank}"])]
        new = {rank: store.get(f"triax/here/{rank}").decode() for rank in came}
        for rank, word in new.items():
            if words.get(rank) != word:
                store.set(f"triax/call/{rank}", json.dumps([name, word, job.folder, job.number]))
        words |= new
        missing = [
            rank
            for rank in missing
            if not (
                store.check([f"triax/heard/{rank}"])
                and store.get(f"triax/heard/{rank}").decode() == name
            )
        ]
        if missing and time.monotonic() >= end:
            more = ", ..." if len(missing) > _MAX_NAMED else ""
            raise TimeoutError(f"missing are ranks {', '.join(missing[:_MAX_NAMED])}{more}")
        time.sleep(_POLL_SECONDS)
    return name


def _unmet(environment: Environment, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    place = "" if environment.meeting_file else (
        f" at {environment.master_addr}:{environment.master_port}"
    )  # fmt: skip
    return (
        f"rank {environment.rank} of {environment.world_size} on {environment.hostname} could not "
        f"meet the others{place}: {reason}. "
        "Did all processes start, is the port free, and do all nodes reach that address?"
    )
