"""What a job costs besides its tensors, counted for a config and a number of processes.

Messages follow from the tree (`parallel/collectives.py`) and from how often a run goes up and down
it; benchmarks/control_plane.py counts the same on running processes.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from triax.launcher.config.run_config import RunConfig
from triax.parallel.collectives import children_of
from triax.training.stability.control import Requests
from triax.training.stability.watchdog import heartbeat_seconds

_MESSAGES = 2
"""To say one thing to one rank: its length, and itself."""
_LENGTH_BYTES = 8
_VERDICT_BYTES = _LENGTH_BYTES + len(pickle.dumps(None))
_PLAN_BYTES = 330
"""Of one part of a tensor in the plan of a save, as torch pickles it."""


@dataclass(frozen=True)
class Trips:
    """How often every rank says something to its parent, and hears something from it."""

    up: int
    down: int


REQUESTS = Trips(1, 1)
SAVE = Trips(8, 10)
"""Verdicts: on the copies, the plans, their division, the writing, the manifest, the rename. To the
first rank go plans and checksums; from it come the folder twice, the own plan, and the size."""


@dataclass(frozen=True)
class Load:
    """Of one process: its connections and what it sends."""

    connections: int
    messages_a_step: int
    bytes_a_step: int
    messages_a_save: int


def load_of(rank: int, world_size: int) -> Load:
    """What a rank sends, by its place in the tree."""
    children, parents = len(children_of(rank, world_size)), 1 if rank else 0
    request = _LENGTH_BYTES + len(pickle.dumps(list(Requests())))

    def sent(trips: Trips) -> int:
        return trips.up * parents + trips.down * children

    return Load(
        children + parents, _MESSAGES * sent(REQUESTS), request * sent(REQUESTS),
        _MESSAGES * sent(SAVE),
    )  # fmt: skip


def describe_control_plane(
    config: RunConfig, world_size: int, processes_per_node: int, num_tensors: int
) -> str:
    """Messages, bytes and files of a run, in lines.

    Args:
        num_tensors: parts of tensors that each rank saves.
    """
    places = {"rank 0": 0, "most ranks": world_size - 1}
    if world_size > processes_per_node:
        places["a node's first"] = (world_size // processes_per_node - 1) * processes_per_node
    lines = [
        f"control plane of {world_size:,} processes, counted, not measured",
        f"{'':16}{'peers':>8}{'messages a step':>17}{'bytes a step':>14}{'messages a save':>17}",
    ]
    for name, rank in places.items():
        load = load_of(rank, world_size)
        lines.append(
            f"{name:16}{load.connections:>8,}{load.messages_a_step:>17,}{load.bytes_a_step:>14,}"
            f"{load.messages_a_save:>17,}"
        )
    plans = world_size * num_tensors * _PLAN_BYTES
    beats = world_size * 60 / heartbeat_seconds(config.stability)
    num_nodes = -(-world_size // processes_per_node)
    num_logs = world_size if config.run.files_per_rank else num_nodes
    where = "the run's folder" if config.run.local_dir is None else "each node's run.local_dir"
    lines += [
        f"plans to rank 0 at a save: {plans / 2**20:,.0f} MiB "
        f"({num_tensors:,} parts of tensors a rank)",
        f"files written by a save: {world_size + 2:,}, in one folder",
        f"heartbeats written a minute: {beats:,.0f}, in {num_logs:,} files of {where}",
        f"logs, each with its stacks: {num_logs:,}, beside them",
        "gloo groups of all processes: 3; connections are opened when first used",
    ]
    if config.checkpoint.every == "auto":
        hours = config.checkpoint.process_fails_every.amount / world_size / 3600
        lines.append(f"a failure is expected every {hours:.1f} h")
    return "\n".join(lines)
