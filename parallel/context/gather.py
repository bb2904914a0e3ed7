"""Attention with all keys and values gathered, as in Llama 3 (section 3.3.2): simple, and nothing
is hidden behind anything. They exist while a layer attends and are gathered again for its backward
pass.

Shape letters: B sequences, N tokens of a sequence on one process, H query heads, G key/value heads,
K head dimension.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from triax.models.layers.attention_op import AttentionOp
from triax.models.layers.blockwise import (
    Attended,
    AttendedGradients,
    Sight,
    attend_tiles,
    differentiate_tiles,
    nothing_attended,
)
from triax.parallel.context.sequence import (
    gathered_parts,
    group_of,
    scattered_sum,
    stretches_of,
    stretches_of_all,
)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, firsts: Tensor | None, window: int | None, group: str
) -> Attended:
    peers = group_of(group)
    attended = nothing_attended(q)
    keys, values = _all_keys(k, v, peers)
    attend_tiles(q, keys, values, _sight(q, firsts, window, peers), attended)
    return attended


def _differentiate(
    grad: Tensor, attended: Attended, q: Tensor, k: Tensor, v: Tensor,
    firsts: Tensor | None, window: int | None, group: str,
) -> AttendedGradients:  # fmt: skip
    peers = group_of(group)
    keys, values = _all_keys(k, v, peers)
    sight = _sight(q, firsts, window, peers)
    found = differentiate_tiles(grad, q, keys, values, attended, sight)
    of_all = torch.stack((found.k_BGSK, found.v_BGSK)).unflatten(3, (peers.size(), -1))
    return AttendedGradients(found.q_BHTK, *scattered_sum(of_all.movedim(3, 0), peers))


def _all_keys(k_BGNK: Tensor, v_BGNK: Tensor, peers: dist.ProcessGroup) -> Tensor:
    """Keys and values of all processes, (2, B, G, S, K), rank by rank; one message."""
    parts = gathered_parts(torch.stack((k_BGNK, v_BGNK)), peers)
    return parts.movedim(0, 3).flatten(3, 4)


def _sight(
    q_BHNK: Tensor, firsts_BN: Tensor | None, window: int | None, peers: dist.ProcessGroup
) -> Sight:
    size, num_tokens = peers.size(), q_BHNK.shape[2] * peers.size()
    queries = stretches_of(peers.rank(), size, num_tokens)
    return Sight(queries, stretches_of_all(size, num_tokens), firsts_BN, window)


gather_attention = AttentionOp("gather_attention", _attend, _differentiate)
