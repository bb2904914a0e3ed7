"""How likely a model finds given continuations of given texts.

Shape letters: B rows, T tokens, D hidden size, C tokens of a continuation, N those of all rows, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triax.models.layers.transformer import Transformer


class Scored(NamedTuple):
    """What a model says of a continuation."""

    log_prob: float
    """Natural logarithm, summed over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest."""


@torch.no_grad()
def score(
    model: Transformer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_length: int,
    batch_size: int,
) -> list[Scored]:
    """Score the second text of each pair after the first.

    Pairs of like lengths are computed together, the longest first; what fills up a row stands
    behind its tokens, which don't see it.

    Args:
        model: on the device to compute on, or this process's part of it.
        pairs: token ids; at least one in each first text. An empty second one scores 0.
        max_length: the model sees so many tokens at most: what is before is left out.
        batch_size: rows at once.
    """
    found: list[Scored | None] = [None] * len(pairs)
    rows = [[*context, *continuation][-(max_length + 1) :] for context, continuation in pairs]
    order = sorted(range(len(pairs)), key=lambda number: -len(rows[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        continuations = [rows[n][1:][-len(pairs[n][1]) :] if pairs[n][1] else [] for n in numbers]
        of_rows = _logits(model, [rows[n][:-1] for n in numbers], list(map(len, continuations)))
        for logits_CV, continuation, number in zip(of_rows, continuations, numbers, strict=True):
            found[number] = _score_row(logits_CV, continuation)
    return [scored for scored in found if scored is not None]


def _logits(
    model: Transformer, rows: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Sequence[Tensor]:
    """Logits (C, V) of what follows the last so many tokens of each row; no others are made."""
    assert model.norm is not None and model.head is not None
    width = max(1, max(map(len, rows)))
    tokens = [[*row, *[0] * (width - len(row))] for row in rows]
    tokens_BT = torch.tensor(tokens, device=next(model.parameters()).device)
    h_BTD = model.norm(model.hidden_states(tokens_BT, width))
    ends = [
        h_BTD[n, len(row) - size : len(row)]
        for n, (row, size) in enumerate(zip(rows, lengths, strict=True))
    ]
    logits_NV: Tensor = model.head.logits(torch.cat(ends)[None])[0]
    split: tuple[Tensor, ...] = logits_NV.split(list(lengths))
    return split


def _score_row(logits_CV: Tensor, continuation: Sequence[int]) -> Scored:
    tokens_C = torch.tensor(continuation, dtype=torch.int64, device=logits_CV.device)
    log_probs_CV = logits_CV.float().log_softmax(-1)
    chosen_C = log_probs_CV.gather(-1, tokens_C[:, None])[:, 0]
    is_greedy = bool((log_probs_CV.argmax(-1) == tokens_C).all())
    return Scored(float(chosen_C.sum()), is_greedy)
