"""Small agreements between processes, over a CPU (gloo) group; None stands for a single process.

These move Python objects or flags, never tensors of the model, and they wait for the peers.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


def group_rank(group: dist.ProcessGroup | None) -> int:
    """This process's rank in the group; 0 for a single process."""
    return 0 if group is None else dist.get_rank(group)


def group_size(group: dist.ProcessGroup | None) -> int:
    """How many processes the group has; 1 for a single process."""
    return 1 if group is None else dist.get_world_size(group)


def gather_objects(value: T, group: dist.ProcessGroup | None) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    if group is None:
        return [value]
    values: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return cast(list[T], values)


def broadcast_object(value: T, group: dist.ProcessGroup | None) -> T:
    """The group's first rank's value, on every rank."""
    if group is None:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


def any_rank(flags: list[bool], group: dist.ProcessGroup | None) -> list[bool]:
    """For each flag, whether any rank has raised it."""
    if group is None:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=group)
    return [bool(flag) for flag in raised.tolist()]
