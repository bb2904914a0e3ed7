"""Messages between processes, as torch's dispatcher sees them: who, what, how much.

A message is one call of a collective, or one half of a transfer between two processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroup, Work, _resolve_process_group

from triax.planning.rehearsal.fake import tensors_in

SEND, RECEIVE = "send", "receive"
_KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_reduce_": "all-reduce",
    "all_reduce_coalesced": "all-reduce",
    "allgather_": "all-gather",
    "allgather_coalesced_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "all_gather_into_tensor_coalesced": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "alltoall_": "all-to-all",
    "alltoall_base_": "all-to-all",
    "all_to_all_single": "all-to-all",
    "shard_dim_alltoall": "all-to-all",
    "broadcast": "broadcast",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "barrier": "barrier",
    "monitored_barrier_": "barrier",
    "send": SEND,
    "recv_": RECEIVE,
    "recv_any_source_": RECEIVE,
}
"""By the operation's name in the namespaces below."""
_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")


@dataclass(frozen=True)
class Group:
    """A process group."""

    name: str
    """torch's own, the same on all of its processes; other groups of the same ranks have others."""
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Message:
    """One call on one process."""

    kind: str
    group: Group
    dtype: str
    num_bytes: int
    """Of the whole: what an all-gather makes, what a reduce-scatter takes, what else is sent."""
    phase: str = ""
    """What the step was doing."""
    peer: int | None = None
    """The other rank of a send or a receive."""
    is_async: bool = False
    """Whether the process goes on, and waits later."""

    @property
    def is_transfer(self) -> bool:
        """Whether it goes between two processes, and not through all of a group."""
        return self.kind in (SEND, RECEIVE)

    def between(self, rank: int) -> tuple[int, ...]:
        """The ranks that it goes between, for the one that sends or receives it."""
        return self.group.ranks if self.peer is None else (rank, self.peer)

    @property
    def content(self) -> tuple[object, ...]:
        """What must be equal where two runs send the same."""
        return (self.kind, self.group.ranks, self.dtype, self.num_bytes, self.peer)


@dataclass(frozen=True)
class Wait:
    """Where a process waits for a message of its own."""

    number: int
    """Of the message, counted from 0."""


Event = Message | Wait


def message_of(func: Any, args: Sequence[Any], kwargs: Any, result: Any) -> Message | None:
    """What an operation sends; None if it sends nothing.

    Args:
        func: as a dispatch mode gets it, with its arguments.
        result: what it returned.
    """
    if func.namespace not in _NAMESPACES:
        return None
    kind = _KINDS.get(func._opname)
    if kind is None:
        return None
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    group = _group_of(given)
    sizes = [_bytes_of(value) for value in (*given.values(), result)]
    tensors = list(tensors_in((*given.values(), result)))
    place = given.get("dst", given.get("src")) if kind in (SEND, RECEIVE) else None
    return Message(
        kind,
        group,
        str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
        0 if kind == "barrier" else max(sizes),
        peer=None if place is None else group.ranks[place],
        # A transfer's call returns always; `dist.send` waits right after it.
        is_async=kind in (SEND, RECEIVE) or bool(given.get("async_op", "async_op" in names)),
    )


def work_of(result: Any) -> Work | None:
    """The handle by which a process waits for a message that was sent by an operation."""
    handle = result[-1] if isinstance(result, tuple | list) and result else result
    if not isinstance(handle, torch.ScriptObject):
        return None
    return Work.unbox(handle)


def _group_of(given: dict[str, Any]) -> Group:
    if "group_name" in given:
        group = _resolve_process_group(given["group_name"])
    else:
        group = ProcessGroup.unbox(given["process_group"])
    return Group(group.group_name, tuple(dist.get_process_group_ranks(group)))


def _bytes_of(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))
