"""Sampling text from a model on one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from triax.models.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    context: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Yield token after token.

    Every token runs the model over the whole context again: simple, and quick enough to look at a
    model. Export the checkpoint to serve it.

    Args:
        model: on the device to compute on.
        prompt: token ids, at least one.
        max_new_tokens: upper bound of what is yielded.
        context: the model sees so many tokens at most, the last ones.
        temperature: of the softmax; 0 takes the likeliest token.
        top_k: only so many of the likeliest tokens may be drawn; None for all.
        seed: of the draws.
        stop_token: ends the text, and is not yielded.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens_1T = torch.tensor([tokens[-context:]], device=device)
        logits_V = model.logits(tokens_1T)[0, -1].cpu()
        token = _draw(logits_V, temperature, top_k, generator)
        if token == stop_token:
            return
        tokens.append(token)
        yield token


def _draw(
    logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < logits_V.numel():
        smallest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, float("-inf"))
    # In fp64 and below 0, so that no temperature makes a quotient that isn't finite or very small.
    scaled_V = (logits_V.double() - logits_V.max()) / temperature
    return int(torch.multinomial(scaled_V.softmax(0), 1, generator=generator))
