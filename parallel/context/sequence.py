"""Which tokens of a sequence are whose.

A sequence is cut into twice as many stretches as there are processes, of which process r has the
r-th and the r-th from the end: a token attends to those before it, so late stretches are more work
than early ones, and pairs are equal (as in Llama 3, section 3.3.2).

Shape letters: B sequences, T tokens of a sequence, N tokens of it on one process.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from triax.models.batch import Batch
from triax.models.layers.masks import document_starts

# The first are torch 2.13's names, the second earlier ones'.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def stretches_of(rank: int, size: int, num_tokens: int) -> tuple[range, range]:
    """The places of a sequence that a process has, of `num_tokens` places."""
    assert num_tokens % (2 * size) == 0, f"{num_tokens} tokens on {size} processes"
    length = num_tokens // (2 * size)
    starts = (rank * length, (2 * size - 1 - rank) * length)
    head, tail = (range(start, start + length) for start in starts)
    return head, tail


def stretches_of_all(size: int, num_tokens: int) -> tuple[range, ...]:
    """Those of all processes, rank by rank."""
    return tuple(s for rank in range(size) for s in stretches_of(rank, size, num_tokens))


def in_row_order(x: Tensor, dim: int) -> Tensor:
    """Tokens that lie process by process, (P, ..., N, ...), by their places, (..., T, ...).

    Args:
        dim: that of N.
    """
    heads, tails = x.chunk(2, dim=dim)
    stretches = torch.cat((heads, tails.flip(0)))
    return stretches.movedim(0, dim - 1).flatten(dim - 1, dim)


def by_process(x: Tensor, size: int, dim: int) -> Tensor:
    """The inverse of `in_row_order`.

    Args:
        dim: that of T.
    """
    heads, tails = x.unflatten(dim, (2 * size, -1)).movedim(dim, 0).chunk(2)
    return torch.cat((heads, tails.flip(0)), dim=dim + 1)


class SequenceDivision:
    """A process's part of each sequence.

    Args:
        mesh: the 1-D mesh of the context axis.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._rank, self._size = mesh.get_local_rank(), mesh.size()
        self._group = mesh.get_group()

    def cut(self, batch: Batch) -> Batch:
        """This process's part of a batch of whole sequences, whose targets are their tokens' own.

        It says each token's position, and its document by the place where that begins, so that
        what a token sees follows from its own numbers.
        """
        if self._size == 1:
            return batch
        num_tokens = batch.tokens_BT.shape[1]
        positions_BT, ids_BT = batch.positions_BT, batch.document_ids_BT
        if positions_BT is None:
            places = torch.arange(num_tokens, device=batch.tokens_BT.device)
            positions_BT = places.expand_as(batch.tokens_BT)
        starts_BT = None if ids_BT is None else document_starts(ids_BT)
        whole = replace(batch, positions_BT=positions_BT, document_ids_BT=starts_BT)
        return whole.map(self._own)

    def join(self, x_BN: Tensor) -> Tensor:
        """What all processes have of each sequence, (B, T), from this one's part."""
        if self._size == 1:
            return x_BN
        return in_row_order(gathered_parts(x_BN, self._group), dim=2)

    def _own(self, x_BT: Tensor) -> Tensor:
        stretches = stretches_of(self._rank, self._size, x_BT.shape[1])
        return torch.cat([x_BT[:, s.start : s.stop] for s in stretches], dim=1)


def group_of(name: str) -> dist.ProcessGroup:
    """The process group of that name, by which operations know theirs."""
    found: dist.ProcessGroup = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
    return found


def gathered_parts(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The tensors of all processes, one behind the other on a new first dimension."""
    size = group.size()
    parts = x.new_empty((size * x.shape[0], *x.shape[1:]))
    _all_gather(parts, x.contiguous(), group=group)
    return parts.view(size, *x.shape)


def scattered_sum(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This process's part of the sum over processes; `parts` has one a process on its first
    dimension."""
    own = parts.new_empty(parts.shape[1:])
    _reduce_scatter(own.view(1, *own.shape), parts.contiguous(), group=group)
    return own
