"""Texts from a model on one device, token after token.

Shape letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triax.common.errors import UserError
from triax.inference.cache import KeyValueCache, next_logits
from triax.inference.sampling import Sampling
from triax.models.layers.transformer import Transformer

DEFAULT_SAMPLING = Sampling(temperature=0.8, top_k=50)


class NewToken(NamedTuple):
    """What a step adds to a row."""

    token: int
    log_prob: float
    """In nats, under the model's own distribution: before temperature and filters."""


def generate(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    context: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    stop_tokens: Collection[int] = (),
) -> Iterator[int]:
    """Yield token after token of one text; the arguments are those of `generate_batch`."""
    steps = generate_batch(
        model,
        [prompt],
        max_new_tokens=max_new_tokens,
        context=context,
        sampling=sampling,
        seeds=[seed],
        stop_tokens=stop_tokens,
    )
    for [new] in steps:
        assert new is not None
        yield new.token


@torch.no_grad()
def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    context: int,
    sampling: Sampling,
    seeds: Sequence[int],
    stop_tokens: Collection[int] = (),
) -> Iterator[list[NewToken | None]]:
    """Yield what each step adds to each row, until all rows have ended.

    A row's tokens don't depend on the others, but for the last bits of the sums behind them. Where
    a text outgrows the context, the model goes on from the last half of it.

    Args:
        model: on the device to compute on.
        prompts: token ids, at least one in each row, of any lengths.
        max_new_tokens: upper bound of what is added to a row.
        context: the model sees so many tokens at most, the last ones.
        sampling: how tokens are drawn.
        seeds: of each row's draws, at least 0 and below 2^64.
        stop_tokens: one of them ends a row, and is not part of it: from there on it has None.

    Raises:
        UserError: the model gives nothing finite.
    """
    texts = [list(prompt) for prompt in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    is_open = [True] * len(texts)
    longest = max(map(len, texts)) + max_new_tokens
    cache = KeyValueCache(model, len(texts), min(context, longest))
    seen_BV = _seen(model, texts) if sampling.repetition_penalty != 1 else None
    logits_BV = _read(model, cache, texts)
    for step in range(max_new_tokens):
        if step > 0:
            logits_BV = _continue(model, cache, texts)
        _refuse_non_finite(logits_BV)
        tokens_B, log_probs_B = sampling.draw(logits_BV, seen_BV, generators)
        if seen_BV is not None:
            seen_BV.scatter_(-1, tokens_B[:, None], True)
        drawn = list(map(NewToken, tokens_B.tolist(), log_probs_B.tolist()))
        for row, new in enumerate(drawn):
            texts[row].append(new.token)
            is_open[row] = is_open[row] and new.token not in stop_tokens
        if not any(is_open):
            return
        yield [new if still else None for new, still in zip(drawn, is_open, strict=True)]


def _refuse_non_finite(logits_BV: Tensor) -> None:
    if not bool(logits_BV.isfinite().all()):
        raise UserError(
            "the model's logits aren't finite: its weights are of no use, perhaps those of a run "
            "that diverged; try an earlier checkpoint"
        )


def _seen(model: Transformer, texts: Sequence[Sequence[int]]) -> Tensor:
    """Which tokens of the vocabulary stand in each text; bool (B, V)."""
    seen_BV = torch.zeros(len(texts), model.config.vocab_size, dtype=torch.bool)
    for row, text in zip(seen_BV, texts, strict=True):
        row[list(text)] = True
    return seen_BV.to(next(model.parameters()).device)


def _read(model: Transformer, cache: KeyValueCache, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) of what follows the texts, or as much of their ends as the cache holds."""
    ends = [text[-cache.capacity :] for text in texts]
    cache.begin([len(end) for end in ends])
    width = max(map(len, ends))
    tokens_BT = torch.tensor([[0] * (width - len(end)) + list(end) for end in ends])
    return next_logits(model, cache, tokens_BT.to(cache.num_empty_B.device))


def _continue(model: Transformer, cache: KeyValueCache, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) of what follows the texts, of which the cache holds all but the last token."""
    if cache.length == cache.capacity:
        # A row is cut when it fills the cache by itself, not because a longer one beside it does.
        half = max(1, cache.capacity // 2)
        held = cache.held()
        kept = [half if size == cache.capacity else size + 1 for size in held]
        return _read(model, cache, [t[-size:] for t, size in zip(texts, kept, strict=True)])
    last_BT = torch.tensor([text[-1:] for text in texts], device=cache.num_empty_B.device)
    return next_logits(model, cache, last_BT)
