"""Random tokens in the shape of a run's batches."""

from __future__ import annotations

import numpy as np

from triax.data.read.loader import make_batch
from triax.data.read.source import Window
from triax.models.batch import Batch

_NUM_BATCHES = 4
"""Different ones, which take turns."""
_DOCUMENT_TOKENS = 1024
"""Mean length of a document where documents are masked."""


class RandomBatches:
    """A process's micro-batches of any step, made once, page-locked for a GPU.

    Args:
        vocab_size: tokens are below this, all equally likely.
        seq_len: tokens of a sequence.
        micro_batch_size: sequences of a micro-batch.
        num_micro_batches: of a step.
        dp_rank: processes of one data-parallel rank get the same tokens.
        mask_documents: cut sequences into documents of random lengths.
        pin_memory: for asynchronous copies.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        micro_batch_size: int,
        num_micro_batches: int,
        dp_rank: int,
        mask_documents: bool,
        pin_memory: bool,
    ) -> None:
        chance = np.random.default_rng(dp_rank)

        def window() -> Window:
            tokens = chance.integers(vocab_size, size=seq_len + 1)
            begins = chance.random(seq_len + 1) < 1 / _DOCUMENT_TOKENS
            return Window(tokens, begins.cumsum().astype(np.int32))

        def micro_batch() -> Batch:
            windows = [window() for _ in range(micro_batch_size)]
            return make_batch(windows, mask_documents=mask_documents, pin_memory=pin_memory)

        self._batches = [
            [micro_batch() for _ in range(num_micro_batches)] for _ in range(_NUM_BATCHES)
        ]

    def of_step(self, number: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        return self._batches[number % _NUM_BATCHES]
