"""DeepSpeed-Ulysses (Jacobs et al. 2023): for attention alone, each process has all tokens of some
heads, which then attends as on one process, by any kernel.

Where there are fewer key/value heads than processes, these are repeated first.

Shape letters: B sequences, T tokens of a sequence, N of them on one process, P processes, H heads
of any kind, K head dimension.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, cat
from torch.distributed._functional_collectives import all_to_all_single_autograd

from triax.parallel.context.methods import num_sent_groups
from triax.parallel.context.sequence import by_process, in_row_order


def to_heads(
    q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """Queries, keys and values of this process's heads, (B, H / P, T, K) each; one message."""
    size = group.size()
    num_sent = num_sent_groups(q_BHNK.shape[1], k_BHNK.shape[1], size)
    repeats = num_sent // k_BHNK.shape[1]
    parts = (q_BHNK, *(x.repeat_interleave(repeats, dim=1) for x in (k_BHNK, v_BHNK)))
    by_heads = [x.unflatten(1, (size, -1)).movedim(1, 0) for x in parts]
    arrived = in_row_order(_exchanged(cat(by_heads, dim=2), group), dim=3)
    shares: tuple[Tensor, ...] = arrived.split([x.shape[2] for x in by_heads], dim=1)
    return shares


def to_tokens(mixed_BHTK: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All heads of this process's tokens, (B, H, N, K), from all tokens of its heads."""
    parts = _exchanged(by_process(mixed_BHTK, group.size(), dim=2), group)
    return parts.movedim(0, 1).flatten(1, 2)


def _exchanged(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What each process has for this one, from what this one has for each, both (P, ...)."""
    sizes = [1] * group.size()
    found: Tensor = all_to_all_single_autograd(x.contiguous(), sizes, sizes, group)
    return found
