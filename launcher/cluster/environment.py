"""What a process is told of its place among the run's, and the words in which variables tell it.

`launchers.py` has the readers of each launcher's variables. Imports no torch.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triax.common.errors import UserError

_FIRST_PORT, _NUM_PORTS = 10_000, 20_000
"""Ports below those that systems hand out by themselves (from 32768 on Linux)."""

_LAST_PORT = 65535
LOOPBACK = "127.0.0.1"
MEETING_FILE = "TRIAX_MEETING_FILE"

Variables = Mapping[str, str]


@dataclass(frozen=True)
class Environment:
    """This process's place among the run's processes."""

    rank: int
    local_rank: int
    """The rank among this machine's processes: which device to use."""
    world_size: int
    local_world_size: int
    node_rank: int
    hostname: str
    launcher: str
    """Its name. `single`: nobody launched us, there is one process and no process group."""
    num_nodes: int = 1
    master_addr: str = ""
    """Where rank 0 listens; empty for `single`."""
    master_port: int = 0
    nodes: tuple[str, ...] = ()
    """The nodes' names, where the launcher tells; they are different machines then."""
    meeting_file: str = ""
    """Where the processes of `triax train --nproc-per-node` meet, instead of a port."""
    agent_listens: bool = False
    """Whether torchrun's agent listens at the address, and not rank 0."""

    def __str__(self) -> str:
        if self.launcher == "single":
            return f"single process on {self.hostname}"
        nodes = "1 node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        found = f"{self.launcher}: {processes} on {nodes}, rank {self.rank} on {self.hostname}"
        if self.meeting_file:
            return found
        return f"{found}, rendezvous at {self.master_addr}:{self.master_port}"

    def variables(self) -> dict[str, str]:
        """torch's usual variables, for libraries that look there; none for `single`."""
        if self.launcher == "single":
            return {}
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def worker_variables(
    variables: Variables, rank: int, num_processes: int, meeting_file: Path
) -> dict[str, str]:
    """The variables of one of the processes of one machine that meet in a file.

    MASTER_ADDR and MASTER_PORT are there for libraries that look for them; nobody listens.
    """
    kept = {
        name: value
        for name, value in variables.items()
        if not name.startswith(("TORCHELASTIC_", "OMPI_COMM_WORLD_"))
    }
    return kept | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(_FIRST_PORT),
        MEETING_FILE: str(meeting_file),
    }


@dataclass(frozen=True)
class Counts:
    """The four numbers that every launcher gives, checked against each other."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    def environment(
        self,
        rendezvous: Variables,
        launcher: str,
        node_rank: int,
        num_nodes: int,
        nodes: tuple[str, ...] = (),
    ) -> Environment:
        """This process's place, where rank 0 listens at MASTER_ADDR and MASTER_PORT.

        Raises:
            UserError: these say nothing that can be an address.
        """
        if not rendezvous["MASTER_ADDR"]:
            raise UserError("environment: MASTER_ADDR is '', expected rank 0's host")
        return Environment(
            self.rank,
            self.local_rank,
            self.world_size,
            self.local_world_size,
            node_rank,
            socket.gethostname(),
            launcher,
            num_nodes,
            rendezvous["MASTER_ADDR"],
            port_of(rendezvous, ""),
            nodes,
        )


def read_counts(
    variables: Variables, rank_name: str, local_rank_name: str, size_name: str, local_size_name: str
) -> Counts:
    """The four numbers under the names that a launcher gives them.

    Raises:
        UserError: one isn't a number, or they contradict each other; it is named.
    """
    counts = Counts(
        integer(variables, rank_name, 0),
        integer(variables, local_rank_name, 0),
        integer(variables, size_name, 1),
        integer(variables, local_size_name, 1),
    )
    below(rank_name, counts.rank, size_name, counts.world_size)
    below(local_rank_name, counts.local_rank, local_size_name, counts.local_world_size)
    if counts.local_world_size > counts.world_size:
        raise UserError(
            f"environment: {local_size_name} is {counts.local_world_size}, "
            f"more than {size_name}, {counts.world_size}"
        )
    return counts


def require(
    variables: Variables, names: Sequence[str], advice: str, found: Sequence[str] | None = None
) -> None:
    """Ask for what a launcher sets, all of it.

    Args:
        advice: what to do, in which `{found}` stands for what is there.
        found: what to call there; those of `names` that are.

    Raises:
        UserError: one isn't there; says which, and the advice.
    """
    missing = [name for name in names if name not in variables]
    if missing:
        there = [name for name in names if name in variables] if found is None else list(found)
        raise UserError(
            f"the environment has {_listed(there)} but not {_listed(missing)}: "
            + advice.format(found=_listed(there))
        )


def port_of(variables: Variables, job: str) -> int:
    """The port that is given, or one that all processes of the job derive alike.

    Raises:
        UserError: MASTER_PORT is no port.
    """
    if "MASTER_PORT" in variables:
        port = integer(variables, "MASTER_PORT", 1)
        if port > _LAST_PORT:
            raise UserError(f"environment: MASTER_PORT is {port}, expected at most {_LAST_PORT}")
        return port
    return _FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS


def integer(variables: Variables, name: str, minimum: int, default: int | None = None) -> int:
    """A variable's whole number; the default where it isn't set.

    Raises:
        UserError: it is none, or below the minimum.
    """
    if default is not None and name not in variables:
        return default
    text = variables[name]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= minimum):
        raise UserError(
            f"environment: {name} is {text!r}, expected a whole number of at least {minimum}"
        )
    return int(text)


def below(name: str, value: int, limit_name: str, limit: int) -> None:
    """Refuse a rank that isn't below the number of ranks.

    Raises:
        UserError: it isn't; names both variables.
    """
    if value >= limit:
        raise UserError(
            f"environment: {name} is {value}, expected less than {limit_name}, which is {limit}"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
