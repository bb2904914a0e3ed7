"""Ring attention (Liu et al. 2023): each process keeps its queries, while keys and values pass from
process to process; while a process attends to those that it has, the next ones arrive.

The backward pass sends them round once more, and with them the sums of their gradients, to which
each process adds its share, and which come home with one more step.

Shape letters: B sequences, N tokens of a sequence on one process, H query heads, G key/value heads,
K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

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
from triax.parallel.context.sequence import group_of, stretches_of


def _attend(
    q: Tensor, k: Tensor, v: Tensor, firsts: Tensor | None, window: int | None, group: str
) -> Attended:
    ring = _Ring(q, firsts, window, group)
    attended = nothing_attended(q)
    keys_values = torch.stack((k, v))
    for turn in range(ring.size):
        is_last = turn == ring.size - 1
        arrival = None if is_last else ring.pass_on(keys_values)
        keys, values = keys_values
        attend_tiles(q, keys, values, ring.sight(turn), attended)
        if arrival is not None:
            keys_values = arrival()
    return attended


def _differentiate(
    grad: Tensor, attended: Attended, q: Tensor, k: Tensor, v: Tensor,
    firsts: Tensor | None, window: int | None, group: str,
) -> AttendedGradients:  # fmt: skip
    ring = _Ring(q, firsts, window, group)
    grad_q = torch.zeros_like(q, dtype=torch.float32)
    keys_values = torch.stack((k, v))
    sums_arrive: Callable[[], Tensor] | None = None
    for turn in range(ring.size):
        is_last = turn == ring.size - 1
        arrival = None if is_last else ring.pass_on(keys_values)
        keys, values = keys_values
        share = differentiate_tiles(grad, q, keys, values, attended, ring.sight(turn))
        grad_q += share.q_BHTK
        sums = torch.stack((share.k_BGSK, share.v_BGSK))
        if sums_arrive is not None:
            sums += sums_arrive()
        sums_arrive = ring.pass_on(sums)
        if arrival is not None:
            keys_values = arrival()
    assert sums_arrive is not None
    return AttendedGradients(grad_q, *sums_arrive())


class _Ring:
    """This process's place in the ring, and what its queries see of others' keys."""

    def __init__(
        self, q_BHNK: Tensor, firsts_BN: Tensor | None, window: int | None, group: str
    ) -> None:
        self._peers = group_of(group)
        self.size, self._rank = self._peers.size(), self._peers.rank()
        self._num_tokens = q_BHNK.shape[2] * self.size
        self._firsts_BN, self._window = firsts_BN, window

    def sight(self, turn: int) -> Sight:
        """Of the keys that are here after so many turns."""
        owner = (self._rank - turn) % self.size
        queries, keys = (stretches_of(r, self.size, self._num_tokens) for r in (self._rank, owner))
        return Sight(queries, keys, self._firsts_BN, self._window)

    def pass_on(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin to send a tensor to the next process; gives what waits for the one before's."""
        x, arriving = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        after, before = ((self._rank + step) % self.size for step in (1, -1))
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, group=self._peers, group_peer=after),
                dist.P2POp(dist.irecv, arriving, group=self._peers, group_peer=before),
            ]
        )

        def wait() -> Tensor:
            for work in works:
                work.wait()
            return arriving

        return wait


ring_attention = AttentionOp("ring_attention", _attend, _differentiate)
