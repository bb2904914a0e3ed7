"""Which process this is, read from the environment that a launcher sets. Imports no torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from triax.common.errors import UserError

_COUNTS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")


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
    launcher: Literal["single", "torchrun"]
    """`single`: nobody launched us, there is one process and no process group."""


def discover(variables: Mapping[str, str] = os.environ) -> Environment:
    """Read the variables that torchrun, or triax's own elastic agent, sets.

    Without any of them this is the run's one process.

    Raises:
        UserError: some are set and others not, or their values make no sense; it names them.
    """
    hostname = socket.gethostname()
    found = [name for name in _COUNTS if name in variables]
    if not found:
        return Environment(0, 0, 1, 1, 0, hostname, "single")
    missing = [name for name in (*_COUNTS, *_RENDEZVOUS) if name not in variables]
    if missing:
        raise UserError(
            f"the environment has {_listed(found)} but not {_listed(missing)}: start the "
            "processes with torchrun or `triax train --nproc-per-node N`, or unset "
            f"{_listed(found)} to run one process"
        )
    rank, local_rank, world_size, local_world_size = (
        _integer(variables, name, minimum)
        for name, minimum in zip(_COUNTS, (0, 0, 1, 1), strict=True)
    )
    _integer(variables, "MASTER_PORT", 1)
    _below("RANK", rank, "WORLD_SIZE", world_size)
    _below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world_size)
    if local_world_size > world_size:
        raise UserError(
            f"environment: LOCAL_WORLD_SIZE is {local_world_size}, "
            f"more than WORLD_SIZE, {world_size}"
        )
    node_rank = (
        _integer(variables, "GROUP_RANK", 0)
        if "GROUP_RANK" in variables
        else rank // local_world_size
    )
    return Environment(
        rank, local_rank, world_size, local_world_size, node_rank, hostname, "torchrun"
    )


def _integer(variables: Mapping[str, str], name: str, minimum: int) -> int:
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


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
