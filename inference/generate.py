"""Texts from a model, token after token.

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
from triax.inference.team import Team, team_config
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
    team: Team | None = None,
) -> Iterator[list[NewToken | None]]:
    """Yield what each step adds to each row, until all rows have ended.

    A row's tokens depend on the others in the last bits of sums alone. Where a text outgrows the
    context, the model goes on from its last half.

    Args:
        model: on the device to compute on, or this process's part of it.
        prompts: token ids, at least one in each row, of any lengths.
        max_new_tokens: added to a row at most.
        context: the model sees so many tokens at most, the last ones.
        sampling: how tokens are drawn.
        seeds: of each row's draws, at least 0 and below 2^64.
        stop_tokens: one of them ends a row, and is not part of it: from there on it has None.
        team: who has the model's other parts, and calls this with the same arguments.

    Raises:
        UserError: the model gives nothing finite.
    """
    team = team or _alone(model)
    texts, is_open = [list(prompt) for prompt in prompts], [True] * len(prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    capacity = min(context, max(map(len, texts)) + max_new_tokens)
    cache = KeyValueCache(model, len(texts), capacity, team.device)
    seen_BV = _seen(model, texts, team.device) if sampling.repetition_penalty != 1 else None
    for step in range(max_new_tokens):
        logits_BV = (_continue if step else _read)(model, cache, texts)
        _refuse_non_finite(logits_BV)
        tokens_B, log_probs_B = sampling.draw(logits_BV, seen_BV, generators)
        team.agree(tokens_B, log_probs_B)
        if seen_BV is not None:
            seen_BV.scatter_(-1, tokens_B[:, None], True)
        drawn = list(map(NewToken, tokens_B.tolist(), log_probs_B.tolist()))
        for row, new in enumerate(drawn):
            texts[row].append(new.token)
            is_open[row] = is_open[row] and new.token not in stop_tokens
        if not any(is_open):
            return
        yield [new if is_open[row] else None for row, new in enumerate(drawn)]


def _alone(model: Transformer) -> Team:
    return Team(next(model.parameters()).device, team_config(1, shards=False))


def _refuse_non_finite(logits_BV: Tensor) -> None:
    if not bool(logits_BV.isfinite().all()):
        raise UserError(
            "the model's logits aren't finite: its weights are of no use, perhaps those of a run "
            "that diverged; try an earlier checkpoint"
        )


def _seen(model: Transformer, texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Which tokens of the vocabulary stand in each text; bool (B, V)."""
    seen_BV = torch.zeros(len(texts), model.config.vocab_size, dtype=torch.bool)
    for row, text in zip(seen_BV, texts, strict=True):
        row[list(text)] = True
    return seen_BV.to(device)


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
