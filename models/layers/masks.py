"""Which tokens see which: as a dense mask, and in blocks for FlexAttention (Dong et al. 2024).

A dense mask is T x T numbers to read for every head, and rules out the fast kernels. In blocks the
mask is a function of two positions, and per block of positions whether it is to be looked at: what
nobody sees is never read. Shortest is how far each token sees, which `models/layers/blockwise.py`
makes masks of, tile by tile.

Shape letters: B batch, T tokens, Q blocks of queries, S blocks of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK_TOKENS = 128
"""Tokens of a block; FlexAttention's own size."""
DENSE_TOKENS = {"cpu": 8192, "cuda": 32768}
"""Of the longest sequence whose dense mask isn't too large, by device; a GPU has kernels that are
fast with it, and 1 GiB for it."""


class Reach(NamedTuple):
    """How far each token sees: to no token after itself, none before its document, and none beyond
    the window. So many numbers as tokens."""

    firsts_BT: Tensor | None
    """Integers: the place in the row where each token's document begins; None where a row is one.
    """
    window: int | None


Mask = Tensor | BlockMask | Reach | None
"""What attention is told of who sees whom; None for plain causal."""


def reach(
    document_ids_BT: Tensor | None,
    num_tokens: int,
    sliding_window: int | None,
    _device: torch.device,
) -> Reach | None:
    """The mask of `attention_mask`, for documents that lie one behind the other, in T numbers; None
    for plain causal."""
    window = sliding_window if sliding_window is not None and sliding_window < num_tokens else None
    if document_ids_BT is None and window is None:
        return None
    return Reach(None if document_ids_BT is None else document_starts(document_ids_BT), window)


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """The place in the row where each token's document begins, int64 (B, T): ids too, by which a
    token tells what it sees without the others' ids."""
    places = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    begins_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return places.where(begins_BT, 0).cummax(-1).values


def attention_mask(
    document_ids_BT: Tensor | None,
    num_tokens: int,
    sliding_window: int | None,
    device: torch.device,
) -> Tensor | None:
    """Which keys each query sees: bool, broadcastable to (B, 1, T, T); None for plain causal."""
    window = sliding_window if sliding_window is not None and sliding_window < num_tokens else None
    if document_ids_BT is None and window is None:
        return None
    position = torch.arange(num_tokens, device=device)
    age_TT = position[:, None] - position[None, :]
    visible_BTT = (age_TT >= 0)[None]
    if window is not None:
        visible_BTT = visible_BTT & (age_TT < window)
    if document_ids_BT is not None:
        visible_BTT = visible_BTT & (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])
    return visible_BTT[:, None]


def block_mask(
    document_ids_BT: Tensor | None,
    num_tokens: int,
    sliding_window: int | None,
    device: torch.device,
) -> BlockMask | None:
    """The mask of `attention_mask`, in blocks; None for plain causal. Waits for nothing.

    A block is left out only if its documents' ranges of ids don't meet, so any ids are right, and
    rising ones, as packed documents have, are fast.
    """
    window = sliding_window if sliding_window is not None and sliding_window < num_tokens else None
    if document_ids_BT is None and window is None:
        return None

    def is_visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = query >= key
        if window is not None:
            visible = visible & (query - key < window)
        if document_ids_BT is not None:
            visible = visible & (document_ids_BT[row, query] == document_ids_BT[row, key])
        return visible

    count = -(-num_tokens // BLOCK_TOKENS)
    number = torch.arange(count, device=device)
    distance_QS = number[:, None] - number[None, :]
    some_BQS, all_BQS = (distance_QS >= 0)[None], (distance_QS > 0)[None]
    if window is not None:
        some_BQS = some_BQS & (distance_QS * BLOCK_TOKENS - (BLOCK_TOKENS - 1) < window)
        all_BQS = all_BQS & (distance_QS * BLOCK_TOKENS + (BLOCK_TOKENS - 1) < window)
    if document_ids_BT is not None:
        places = torch.arange(count * BLOCK_TOKENS, device=device).clamp(max=num_tokens - 1)
        blocks = document_ids_BT[:, places].unflatten(1, (count, BLOCK_TOKENS))
        lowest, highest = blocks.amin(-1), blocks.amax(-1)
        meets = (lowest[:, :, None] <= highest[:, None]) & (highest[:, :, None] >= lowest[:, None])
        is_one = (lowest[:, :, None] == highest[:, None]) & (highest[:, :, None] == lowest[:, None])
        some_BQS, all_BQS = some_BQS & meets, all_BQS & is_one
    return BlockMask.from_kv_blocks(
        *_listed(some_BQS & ~all_BQS),
        *_listed(all_BQS),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=is_visible,
        seq_lengths=(num_tokens, num_tokens),
    )


def _listed(is_chosen_BQS: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of blocks has, and their numbers first; int32, a head axis of 1."""
    chosen = is_chosen_BQS[:, None].to(torch.int32)
    numbers = chosen.argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), numbers.to(torch.int32)
