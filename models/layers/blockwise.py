"""Attention tile by tile, with the online softmax (Milakov and Gimelshein 2018): neither scores nor
a mask of all tokens exist at once, and tiles where nothing is visible are never computed.

What queries make of some of the keys, and the logarithm of those softmaxes' normalisers, can be
merged with what they make of others: so keys may come in parts, as in FlashAttention (Dao et al.
2022) and ring attention (Liu et al. 2023). All sums are in fp32.

Shape letters: B batch, T queries, S keys, H query heads, G key/value heads, K head dimension,
R query heads that share a key/value head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TILE_TOKENS = 1024
"""Most queries, and most keys, of a tile."""


@dataclass(frozen=True, eq=False)
class Sight:
    """What some queries of a row see of some of its keys: no token after themselves, none before
    their document, and none beyond the window.

    Queries and keys are stretches of the row's places, one behind the other in their tensors.
    """

    queries: tuple[range, ...]
    keys: tuple[range, ...]
    firsts_BT: Tensor | None
    """Integers: the place where each query's document begins; None where rows are one document."""
    window: int | None


class Attended(NamedTuple):
    """What queries make of some keys."""

    mixed_BHTK: Tensor
    """The mean of the values by softmax over those keys; fp32 while keys are added."""
    log_sum_BHT: Tensor
    """log sum exp of those scores, fp32; -inf where a query sees none of the keys."""


class _Tile(NamedTuple):
    """Some queries, and keys that some of them may see."""

    rows: slice
    """Of the queries' tensor."""
    columns: slice
    """Of the keys' tensor."""
    hidden_BTS: Tensor | None
    """What isn't visible; None where all is."""


def nothing_attended(q_BHTK: Tensor) -> Attended:
    """What queries make of no keys."""
    mixed_BHTK = torch.zeros_like(q_BHTK, dtype=torch.float32)
    return Attended(mixed_BHTK, torch.full_like(mixed_BHTK[..., 0], -torch.inf))


def attend_tiles(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, sight: Sight, attended: Attended
) -> None:
    """Add to what the queries have made of other keys, in place: values mixed by
    softmax(q k^T / sqrt(K)) over the visible keys."""
    for rows, columns, hidden_BTS in _tiles(sight, q_BHTK.device):
        scores_BGRTS = _scores(q_BHTK[:, :, rows], k_BGSK[:, :, columns], hidden_BTS)
        log_sum = scores_BGRTS.logsumexp(-1, keepdim=True)
        shares_BGRTS = scores_BGRTS.sub_(_finite(log_sum)).exp_()
        of_tile = Attended(
            _of_heads(shares_BGRTS, v_BGSK[:, :, columns]), log_sum[..., 0].flatten(1, 2)
        )
        so_far = Attended(*(x[:, :, rows] for x in attended))
        for total, value in zip(so_far, merged(so_far, of_tile), strict=True):
            total.copy_(value)


def merged(a: Attended, b: Attended) -> Attended:
    """What the queries make of the keys of both."""
    log_sum_BHT = torch.logaddexp(a.log_sum_BHT, b.log_sum_BHT)
    shift = _finite(log_sum_BHT)
    of_a, of_b = ((x.log_sum_BHT - shift).exp()[..., None] for x in (a, b))
    return Attended(of_a * a.mixed_BHTK + of_b * b.mixed_BHTK, log_sum_BHT)


class AttendedGradients(NamedTuple):
    """fp32, of the keys that they were asked for alone."""

    q_BHTK: Tensor
    k_BGSK: Tensor
    v_BGSK: Tensor


def differentiate_tiles(
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    attended: Attended,
    sight: Sight,
) -> AttendedGradients:
    """The share that these keys have in the gradients (Dao et al. 2022, appendix B).

    Args:
        grad_BHTK: of the mixed values.
        attended: what the queries made of all keys, not of these alone.
    """
    found = AttendedGradients(
        *(torch.zeros_like(x, dtype=torch.float32) for x in (q_BHTK, k_BGSK, v_BGSK))
    )
    num_groups, scale = k_BGSK.shape[1], q_BHTK.shape[-1] ** -0.5
    grad_BHTK = grad_BHTK.float()
    inner_BHT = (grad_BHTK * attended.mixed_BHTK).sum(-1)  # what normalising adds to each score
    for rows, columns, hidden_BTS in _tiles(sight, q_BHTK.device):
        q, k, v = q_BHTK[:, :, rows], k_BGSK[:, :, columns], v_BGSK[:, :, columns]
        grad, inner, log_sum = (
            _by_group(x[:, :, rows], num_groups)
            for x in (grad_BHTK, inner_BHT[..., None], attended.log_sum_BHT[..., None])
        )
        shares_BGRTS = _scores(q, k, hidden_BTS).sub_(log_sum).exp_()
        found.v_BGSK[:, :, columns] += _of_keys(shares_BGRTS, grad)
        of_scores_BGRTS = (grad @ v.float()[:, :, None].mT).sub_(inner).mul_(shares_BGRTS)
        of_scores_BGRTS *= scale
        found.q_BHTK[:, :, rows] += _of_heads(of_scores_BGRTS, k)
        found.k_BGSK[:, :, columns] += _of_keys(of_scores_BGRTS, _by_group(q, num_groups).float())
    return found


def _scores(q_BHTK: Tensor, k_BGSK: Tensor, hidden_BTS: Tensor | None) -> Tensor:
    """(B, G, R, T, S), -inf where nothing is seen."""
    q_BGRTK = _by_group(q_BHTK, k_BGSK.shape[1]).float() * q_BHTK.shape[-1] ** -0.5
    scores_BGRTS: Tensor = q_BGRTK @ k_BGSK.float()[:, :, None].mT
    if hidden_BTS is None:
        return scores_BGRTS
    return scores_BGRTS.masked_fill_(hidden_BTS[:, None, None], -torch.inf)


def _by_group(x: Tensor, num_groups: int) -> Tensor:
    """(B, H, ...) as (B, G, R, ...)."""
    return x.unflatten(1, (num_groups, -1))  # type: ignore[no-any-return]


def _of_heads(weights_BGRTS: Tensor, x_BGSK: Tensor) -> Tensor:
    """Sums over keys, (B, H, T, K)."""
    return (weights_BGRTS @ x_BGSK.float()[:, :, None]).flatten(1, 2)


def _of_keys(weights_BGRTS: Tensor, x_BGRTK: Tensor) -> Tensor:
    """Sums over queries, and over the heads of a group, (B, G, S, K)."""
    return weights_BGRTS.flatten(2, 3).mT @ x_BGRTK.flatten(2, 3)


def _finite(log_sum: Tensor) -> Tensor:
    """What may be subtracted from -inf."""
    return log_sum.clamp(min=torch.finfo(torch.float32).min)


def _tiles(sight: Sight, device: torch.device) -> Iterator[_Tile]:
    """The tiles in which something may be visible.

    On a CPU documents are looked at for it; elsewhere the host would have to wait for them.
    """
    looks = sight.firsts_BT is not None and device.type == "cpu"
    for rows, queries in _pieces(sight.queries):
        firsts_BT = None if sight.firsts_BT is None else sight.firsts_BT[:, rows]
        lowest, highest = 0, 0 if firsts_BT is None else queries.stop
        if looks:
            assert firsts_BT is not None
            lowest, highest = (int(x) for x in firsts_BT.aminmax())
        if sight.window is not None:
            lowest = max(lowest, queries.start - sight.window + 1)
            highest = max(highest, queries.stop - sight.window)
        for columns, keys in _pieces(sight.keys):
            if keys.start >= queries.stop or keys.stop <= lowest:
                continue
            is_whole = keys.stop <= queries.start + 1 and keys.start >= highest
            hidden = None if is_whole else _hidden(queries, keys, firsts_BT, sight.window, device)
            yield _Tile(rows, columns, hidden)


def _pieces(stretches: Sequence[range]) -> Iterator[tuple[slice, range]]:
    """Where each piece of at most `TILE_TOKENS` lies in the tensor, and which places it has."""
    before = 0
    for stretch in stretches:
        for start in range(0, len(stretch), TILE_TOKENS):
            places = stretch[start : start + TILE_TOKENS]
            yield slice(before + start, before + start + len(places)), places
        before += len(stretch)


def _hidden(
    queries: range, keys: range, firsts_BT: Tensor | None, window: int | None, device: torch.device
) -> Tensor:
    """Which keys each query doesn't see: bool (B, T, S), or (1, T, S) without documents."""
    query_T1 = torch.arange(queries.start, queries.stop, device=device)[:, None]
    key_S = torch.arange(keys.start, keys.stop, device=device)
    hidden_BTS = (key_S > query_T1)[None]
    if window is not None:
        hidden_BTS = hidden_BTS | (query_T1 - key_S >= window)
    if firsts_BT is not None:
        hidden_BTS = hidden_BTS | (key_S < firsts_BT[..., None])
    return hidden_BTS
