"""Small agreements between processes, over a CPU (gloo) group; None stands for a single process.

These move Python objects or flags, never tensors of the model, and they wait for the peers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from triax.common.errors import UserError

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


class PeerFailedError(RuntimeError):
    """Another process failed and has told why by a traceback; this one only has to end."""


def on_first_however_long(work: Callable[[], object], group: dist.ProcessGroup | None) -> None:
    """Run `work` on the first rank while the others wait for it, however long it takes.

    For work of unknown length: the ranks meet every second, so no wait is long enough to run into
    the group's timeout. What is soon done takes `checkpoint.agreement.on_first`, which gives its
    value to every rank and doesn't sleep.

    Raises:
        Exception: what `work` raised, on the first rank.
        UserError: on the others, if that was one.
        PeerFailedError: on the others, if it was anything else.
    """
    if group is None:
        work()
        return
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work) if group_rank(group) == 0 else None
        while True:
            done = running is not None and running.done()
            error = running.exception() if running is not None and done else None
            is_done, has_failed, by_user = any_rank(
                [done, error is not None, isinstance(error, UserError)], group
            )
            if is_done:
                break
            time.sleep(1.0)
    message = broadcast_object(str(error), group)
    if running is not None:
        running.result()
    elif has_failed:
        raise UserError(message) if by_user else PeerFailedError(f"rank 0 failed: {message}")
