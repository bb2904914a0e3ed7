"""Texts that a model in training writes, by the engine that trains it, in every layout.

The next token of all texts is one forward pass over rows that are as short as they: there is no
second model and no cache, so a long sample costs more than `triax generate` would take for it.

Shape letters: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triax.common.tokens import IGNORE_INDEX
from triax.models.batch import Batch
from triax.parallel.engine import Engine


class Sample(NamedTuple):
    """What a model makes of a prompt."""

    prompt: str
    text: str
    """What it adds."""


class Samples:
    """Prompts that the model goes on with, always by its likeliest token.

    Args:
        prompts: token ids, alike on every process, at least one in each; the last ones that leave
            room for what is added are shown.
        num_tokens: added to each at most.
        row_length: of the batches: T, above `num_tokens`.
        end: the token that ends a text.
        decode: tokens to text; None on a process that needn't know what is written.
        micro_batch_size: B.
        dp_rank, dp_size: which part of the batches is this process's.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_tokens: int,
        row_length: int,
        end: int,
        decode: Callable[[Sequence[int]], str] | None,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
    ) -> None:
        self._prompts = [list(prompt)[-(row_length - num_tokens) :] for prompt in prompts]
        self._num_tokens = num_tokens
        self._row_length = row_length
        self._end = end
        self._decode = decode
        self._micro_batch_size = micro_batch_size
        self._num_batches = -(-len(prompts) // (dp_size * micro_batch_size))
        first = dp_rank * self._num_batches * micro_batch_size
        self._own = range(first, first + self._num_batches * micro_batch_size)

    def write(self, engine: Engine) -> list[Sample]:
        """All texts; none where they can't be decoded. Collective."""
        texts = [list(prompt) for prompt in self._prompts]
        is_open = [True] * len(texts)
        for _ in range(self._num_tokens):
            for number, token in enumerate(self._next(engine, texts)):
                is_open[number] = is_open[number] and token != self._end
                texts[number] += [token] if is_open[number] else []
            if not any(is_open):
                break
        pairs = zip(self._prompts, texts, strict=True)
        return [self._sample(self._decode, *pair) for pair in pairs if self._decode is not None]

    def _next(self, engine: Engine, texts: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest token to follow each text, on every process."""
        tokens_NBT = engine.likeliest(self._batches(texts))
        found = torch.zeros(len(texts), dtype=torch.float64, device=engine.device)
        for place, number in enumerate(self._own):
            if number < len(texts):
                batch, row = divmod(place, self._micro_batch_size)
                found[number] = tokens_NBT[batch][row, len(texts[number]) - 1].double()
        return [round(token) for token in engine.sum_over_data(found).tolist()]

    def _batches(self, texts: Sequence[Sequence[int]]) -> list[Batch]:
        """This process's, with one target in each row, where the next token is asked for."""
        shape = (len(self._own), self._row_length)
        tokens_BT = torch.zeros(shape, dtype=torch.int64)
        targets_BT = torch.full(shape, IGNORE_INDEX)
        for row, number in enumerate(self._own):
            if number < len(texts):
                length = len(texts[number])
                tokens_BT[row, :length] = torch.tensor(texts[number])
                targets_BT[row, length - 1] = 0
        parts = (x_BT.split(self._micro_batch_size) for x_BT in (tokens_BT, targets_BT))
        return [self._batch(*part) for part in zip(*parts, strict=True)]

    def _batch(self, tokens_BT: Tensor, targets_BT: Tensor) -> Batch:
        """A document a row, as batches of tasks have it."""
        positions_BT = torch.arange(self._row_length).repeat(len(tokens_BT), 1)
        documents_BT = torch.zeros(tokens_BT.shape, dtype=torch.int32)
        return Batch(tokens_BT, targets_BT, documents_BT, positions_BT)

    @staticmethod
    def _sample(
        decode: Callable[[Sequence[int]], str], prompt: Sequence[int], text: Sequence[int]
    ) -> Sample:
        before = decode(prompt)
        return Sample(before, decode(text)[len(before) :])
