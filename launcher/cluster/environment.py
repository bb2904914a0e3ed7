"""Which process this is, read from the variables that a launcher sets. Imports no torch.

Each launcher has a reader; the first whose variables are there wins. They stand inside out: a
torchrun or mpirun that was itself started by srun knows better which processes it made.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from triax.common.errors import UserError
from triax.launcher.cluster.hostlist import expand_counts, expand_nodes

_FIRST_PORT, _NUM_PORTS = 10_000, 20_000
"""Ports below those that systems hand out by themselves (from 32768 on Linux)."""

_LAST_PORT = 65535
LOOPBACK = "127.0.0.1"
_MEETING_FILE = "TRIAX_MEETING_FILE"

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
    launcher: Literal["single", "triax", "torchrun", "deepspeed", "mpirun", "srun"]
    """`single`: nobody launched us, there is one process and no process group."""
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


def discover(variables: Variables = os.environ) -> Environment:
    """Find out who started this process, and which of the run's processes it is.

    torchrun, triax's own launcher, the `deepspeed` launcher, Open MPI's mpirun and srun are known
    by their variables; without any of them this is the run's one process.

    Raises:
        UserError: some are set and others not, or their values make no sense; it names them.
    """
    for names, read in _READERS:
        if any(name in variables for name in names):
            return read(variables)
    return Environment(0, 0, 1, 1, 0, socket.gethostname(), "single")


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
        _MEETING_FILE: str(meeting_file),
    }


def _from_torch(variables: Variables) -> Environment:
    """torchrun's variables and ours; the deepspeed launcher's differ where they count nodes."""
    by_deepspeed = "LOCAL_WORLD_SIZE" not in variables and "CROSS_SIZE" in variables
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE"]
    names += ["LOCAL_SIZE", "CROSS_RANK"] if by_deepspeed else ["LOCAL_WORLD_SIZE"]
    _require(
        variables,
        [*names, "MASTER_ADDR", "MASTER_PORT"],
        "start the processes with torchrun or `triax train --nproc-per-node N`, or unset {found} "
        "to run one process",
    )
    counts = _counts(variables, names[0], names[1], names[2], names[3])
    if by_deepspeed:
        node_rank = _integer(variables, "CROSS_RANK", 0)
        num_nodes = _integer(variables, "CROSS_SIZE", 1)
        node_names = ("CROSS_RANK", "CROSS_SIZE")
    else:
        node_rank = _integer(variables, "GROUP_RANK", 0, counts.rank // counts.local_world_size)
        num_nodes = _integer(
            variables, "GROUP_WORLD_SIZE", 1, -(-counts.world_size // counts.local_world_size)
        )
        node_names = ("GROUP_RANK", "GROUP_WORLD_SIZE")
    _below(node_names[0], node_rank, node_names[1], num_nodes)
    launcher: Literal["deepspeed", "torchrun"] = "deepspeed" if by_deepspeed else "torchrun"
    found = counts.environment(variables, launcher, node_rank, num_nodes)
    # Within a process of ours someone may have started torchrun.
    if _MEETING_FILE in variables and "TORCHELASTIC_RUN_ID" not in variables:
        return replace(found, launcher="triax", meeting_file=variables[_MEETING_FILE])
    return replace(found, agent_listens=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _from_mpirun(variables: Variables) -> Environment:
    names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")]
    _require(variables, names, "start the processes with Open MPI's mpirun, or unset {found}")
    counts = _counts(variables, *names)
    node_rank = counts.rank // counts.local_world_size
    num_nodes = -(-counts.world_size // counts.local_world_size)
    if num_nodes == 1 and "MASTER_ADDR" not in variables:
        job = variables.get("PMIX_NAMESPACE", variables.get("OMPI_MCA_ess_base_jobid", ""))
        port = _port(variables, job)
        return counts.environment(
            {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}, "mpirun", 0, 1
        )
    _require(
        variables,
        ["MASTER_ADDR", "MASTER_PORT"],
        "mpirun doesn't say where rank 0 is: add `-x MASTER_ADDR=HOST -x MASTER_PORT=29500`, where "
        "HOST is the first node's name",
        found=names[:1],
    )
    return counts.environment(variables, "mpirun", node_rank, num_nodes)


def _from_srun(variables: Variables) -> Environment:
    nodes_name = next(
        (name for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST") if name in variables),
        "SLURM_STEP_NODELIST",
    )
    names = ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"]
    _require(
        variables,
        [*names, "SLURM_NODEID", nodes_name, "SLURM_JOB_ID"],
        "srun sets all of them: don't unset any, or unset {found} to run one process",
    )
    try:
        nodes = expand_nodes(variables[nodes_name])
    except UserError as error:
        raise UserError(f"environment: {nodes_name}: {error}") from None
    try:
        per_node = expand_counts(variables["SLURM_STEP_TASKS_PER_NODE"])
    except UserError as error:
        raise UserError(f"environment: SLURM_STEP_TASKS_PER_NODE: {error}") from None
    node_rank = _integer(variables, "SLURM_NODEID", 0)
    if node_rank >= min(len(nodes), len(per_node)):
        raise UserError(
            f"environment: SLURM_NODEID is {node_rank}, but {nodes_name} has {len(nodes)} nodes "
            f"and SLURM_STEP_TASKS_PER_NODE {len(per_node)}"
        )
    tasks_here = {**variables, "SLURM_STEP_TASKS_PER_NODE": str(per_node[node_rank])}
    counts = _counts(tasks_here, *names)
    job = f"{variables['SLURM_JOB_ID']}.{variables.get('SLURM_STEP_ID', '0')}"
    rendezvous = {
        "MASTER_ADDR": variables.get("MASTER_ADDR", nodes[0] if len(nodes) > 1 else LOOPBACK),
        "MASTER_PORT": str(_port(variables, job)),
    }
    return counts.environment(rendezvous, "srun", node_rank, len(nodes), tuple(nodes))


_READERS: Sequence[tuple[Sequence[str], Callable[[Variables], Environment]]] = (
    (("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), _from_torch),
    (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), _from_mpirun),
    # A batch script has SLURM_PROCID too: only srun's tasks have a step with tasks.
    (("SLURM_STEP_NUM_TASKS",), _from_srun),
)


@dataclass(frozen=True)
class _Counts:
    """The four numbers that every launcher gives, checked against each other."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    def environment(
        self,
        rendezvous: Variables,
        launcher: Literal["torchrun", "deepspeed", "mpirun", "srun"],
        node_rank: int,
        num_nodes: int,
        nodes: tuple[str, ...] = (),
    ) -> Environment:
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
            _port(rendezvous, ""),
            nodes,
        )


def _counts(
    variables: Variables, rank_name: str, local_rank_name: str, size_name: str, local_size_name: str
) -> _Counts:
    counts = _Counts(
        _integer(variables, rank_name, 0),
        _integer(variables, local_rank_name, 0),
        _integer(variables, size_name, 1),
        _integer(variables, local_size_name, 1),
    )
    _below(rank_name, counts.rank, size_name, counts.world_size)
    _below(local_rank_name, counts.local_rank, local_size_name, counts.local_world_size)
    if counts.local_world_size > counts.world_size:
        raise UserError(
            f"environment: {local_size_name} is {counts.local_world_size}, "
            f"more than {size_name}, {counts.world_size}"
        )
    return counts


def _require(
    variables: Variables, names: Sequence[str], advice: str, found: Sequence[str] | None = None
) -> None:
    missing = [name for name in names if name not in variables]
    if missing:
        there = [name for name in names if name in variables] if found is None else list(found)
        raise UserError(
            f"the environment has {_listed(there)} but not {_listed(missing)}: "
            + advice.format(found=_listed(there))
        )


def _port(variables: Variables, job: str) -> int:
    """The port that is given, or one that all processes of the job derive alike."""
    if "MASTER_PORT" in variables:
        port = _integer(variables, "MASTER_PORT", 1)
        if port > _LAST_PORT:
            raise UserError(f"environment: MASTER_PORT is {port}, expected at most {_LAST_PORT}")
        return port
    return _FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS


def _integer(variables: Variables, name: str, minimum: int, default: int | None = None) -> int:
    if default is not None and name not in variables:
        return default
    text = variables[name]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= minimum):
        raise UserError(
            f"environment: {name} is {text!r}, expected a whole number of at least {minimum}"
        )
    return int(text)


def _below(name: str, value: int, limit_name: str, limit: int) -> None:
    if value >= limit:
        raise UserError(
            f"environment: {name} is {value}, expected less than {limit_name}, which is {limit}"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
