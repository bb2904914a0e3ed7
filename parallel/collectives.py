"""Small agreements between processes, over a CPU (gloo) group; None stands for a single process.

These move Python objects or flags, never tensors of the model, and they wait for the peers. All
go along one tree: of eight neighbouring ranks the first speaks for the others, of eight such the
first again, up to the group's first rank. So a process talks with its parent and its children
alone, and no rank but the leaders has more of them than one.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_FAN_IN = 8
"""A node's usual number of processes, so that most words stay within their node."""
_MAIN_TAG = 0


def group_rank(group: dist.ProcessGroup | None) -> int:
    """This process's rank in the group; 0 for a single process."""
    return 0 if group is None else dist.get_rank(group)


def group_size(group: dist.ProcessGroup | None) -> int:
    """How many processes the group has; 1 for a single process."""
    return 1 if group is None else dist.get_world_size(group)


def parent_of(rank: int) -> int:
    """Who speaks for a rank other than 0: the rank with its last digit in base 8, that isn't 0,
    made 0."""
    span = _FAN_IN
    while rank % span == 0:
        span *= _FAN_IN
    return rank - rank % span


def children_of(rank: int, size: int) -> list[int]:
    """For whom a rank speaks, in rank order; the ranks below one child come before the next."""
    children: list[int] = []
    span = 1
    while rank % (span * _FAN_IN) == 0 and rank + span < size:
        children += range(rank + span, min(rank + span * _FAN_IN, size), span)
        span *= _FAN_IN
    return children


def reduce_objects(
    value: T, merge: Callable[[T, T], T], group: dist.ProcessGroup | None, tag: int = _MAIN_TAG
) -> T:
    """All ranks' values merged into one, on every rank.

    Args:
        merge: joins the values of two runs of ranks, the lower ones first; it must not raise.
        tag: of a talk that may go on while another thread has one with another tag.
    """
    return broadcast_object(_merged_below(value, merge, group, tag), group, tag)


def gather_objects(
    value: T, group: dist.ProcessGroup | None, tag: int = _MAIN_TAG
) -> list[T] | None:
    """Every rank's value, in rank order, on the first rank; None on the others."""
    found = _merged_below([pickle.dumps(value)], operator.add, group, tag)
    return [pickle.loads(item) for item in found] if group_rank(group) == 0 else None


def scatter_objects(values: list[T] | None, group: dist.ProcessGroup | None) -> T:
    """To each rank its own of the first rank's values, which are None on the others."""
    if group is None:
        assert values is not None
        return values[0]
    rank, children = dist.get_rank(group), children_of(dist.get_rank(group), group.size())
    if values is not None:
        packed = [pickle.dumps(value) for value in values]
    else:
        packed = pickle.loads(_receive(parent_of(rank), group, _MAIN_TAG))
    for child, end in pairwise([*children, rank + len(packed)]):
        _send(pickle.dumps(packed[child - rank : end - rank]), child, group, _MAIN_TAG)
    mine: T = pickle.loads(packed[0])
    return mine


def broadcast_object(value: T, group: dist.ProcessGroup | None, tag: int = _MAIN_TAG) -> T:
    """The group's first rank's value, on every rank."""
    if group is None:
        return value
    rank = dist.get_rank(group)
    packed = pickle.dumps(value) if rank == 0 else _receive(parent_of(rank), group, tag)
    for child in reversed(children_of(rank, group.size())):  # the longest ways first
        _send(packed, child, group, tag)
    return value if rank == 0 else pickle.loads(packed)


def any_rank(
    flags: list[bool], group: dist.ProcessGroup | None, tag: int = _MAIN_TAG
) -> list[bool]:
    """For each flag, whether any rank has raised it."""
    return reduce_objects(
        flags, lambda left, right: [a or b for a, b in zip(left, right, strict=True)], group, tag
    )


def _merged_below(
    value: T, merge: Callable[[T, T], T], group: dist.ProcessGroup | None, tag: int
) -> T:
    """The values of this rank and of all below it; of all ranks, on the first."""
    if group is None:
        return value
    rank = dist.get_rank(group)
    for child in children_of(rank, group.size()):
        value = merge(value, pickle.loads(_receive(child, group, tag)))
    if rank:
        _send(pickle.dumps(value), parent_of(rank), group, tag)
    return value


def _send(packed: bytes, rank: int, group: dist.ProcessGroup, tag: int) -> None:
    """A length, then the bytes: who receives has to know how much comes."""
    length = torch.tensor([len(packed)])
    dist.send(length, group=group, group_dst=rank, tag=tag)
    dist.send(_as_tensor(bytearray(packed)), group=group, group_dst=rank, tag=tag)


def _receive(rank: int, group: dist.ProcessGroup, tag: int) -> Any:
    length = torch.empty(1, dtype=torch.int64)
    dist.recv(length, group=group, group_src=rank, tag=tag)
    packed = bytearray(int(length))
    dist.recv(_as_tensor(packed), group=group, group_src=rank, tag=tag)
    return packed


def _as_tensor(packed: bytearray) -> torch.Tensor:
    return torch.frombuffer(packed, dtype=torch.uint8)
