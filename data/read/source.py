"""One source of samples: its shards, seen as numbered windows of tokens.

A window is `seq_len + 1` tokens of one shard, at stride `seq_len`: the last token of one window
is the first of the next, so each token but a shard's first is a target exactly once. The few
tokens at a shard's end that fill no window are not used.

Shape legend: T = seq_len.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triax.common.errors import UserError
from triax.data.read.shards import Shard, find_shards


@dataclass(frozen=True)
class Window:
    """One sample, inputs and targets still in one piece."""

    tokens: NDArray[np.int64]
    """(T + 1,)."""
    document_ids: NDArray[np.int32]
    """(T + 1,); equal where tokens are of one document, counted from 0 in this window."""
    weights: NDArray[np.float32] | None = None
    """(T + 1,): how much each token counts as a target; None: each once."""
    positions: NDArray[np.int64] | None = None
    """(T + 1,): of each token in its conversation; None: in the window."""
    reference: NDArray[np.float32] | None = None
    """(T + 1,): see `Batch.reference_BT`."""


class Source:
    """The windows of one or several shards, in the shards' order."""

    def __init__(self, shards: Sequence[Shard], seq_len: int, vocab_size: int) -> None:
        """Number the windows of open shards.

        Raises:
            UserError: the shards hold no whole window.
        """
        assert shards and seq_len >= 1
        self._seq_len = seq_len
        self._vocab_size = vocab_size
        self._shards = [shard for shard in shards if shard.num_tokens > seq_len]
        counts = [(shard.num_tokens - 1) // seq_len for shard in self._shards]
        self._first_windows = list(accumulate(counts, initial=0))[:-1]
        documents = [shard.num_documents for shard in self._shards]
        *self._first_documents, self.num_documents = accumulate(documents, initial=0)
        self.prefixes = tuple(shard.prefix for shard in shards)
        self.num_windows = sum(counts)
        self.num_tokens = sum(shard.num_tokens for shard in shards)
        if not self.num_windows:
            longest = max(shards, key=lambda shard: shard.num_tokens)
            raise UserError(
                f"{longest.prefix}: too few tokens for one sample: the longest shard has "
                f"{longest.num_tokens:,}, and data.seq_len = {seq_len:,} needs {seq_len + 1:,}; "
                "prepare more text or lower data.seq_len"
            )

    @staticmethod
    def open(prefix: Path | str, seq_len: int, vocab_size: int) -> Source:
        """Open all shards of a prefix (see `find_shards`) as text; `open_source` looks what it is.

        Raises:
            UserError: a shard is missing or damaged, or there is no whole window.
        """
        return Source([Shard.open(path) for path in find_shards(prefix)], seq_len, vocab_size)

    def window(self, index: int) -> Window:
        """Read one window, `index` in range(num_windows).

        Raises:
            UserError: it holds a token id outside [0, vocab_size).
        """
        assert 0 <= index < self.num_windows, (index, self.num_windows)
        number = bisect_right(self._first_windows, index) - 1
        shard = self._shards[number]
        start = (index - self._first_windows[number]) * self._seq_len
        tokens = shard.read(start, self._seq_len + 1)
        self._check_tokens(shard, start, tokens)
        return Window(tokens, shard.document_ids(start, self._seq_len + 1))

    def documents(self, index: int) -> NDArray[np.int64]:
        """Which of the `num_documents` documents each token of a window is from: (T + 1,).

        They are counted over the shards that have windows.
        """
        number = bisect_right(self._first_windows, index) - 1
        shard = self._shards[number]
        start = (index - self._first_windows[number]) * self._seq_len
        first = self._first_documents[number] + shard.document_at(start)
        return first + shard.document_ids(start, self._seq_len + 1).astype(np.int64)

    def _check_tokens(self, shard: Shard, start: int, tokens: NDArray[np.int64]) -> None:
        # One comparison: as unsigned numbers, negative ids are above every vocabulary.
        bad = tokens.view(np.uint64) >= self._vocab_size
        if bad.any():
            first = int(bad.argmax())
            raise UserError(
                f"{shard.prefix}: token id {tokens[first]} at position {start + first:,} is not in "
                f"[0, model.vocab_size = {self._vocab_size:,}); set model.vocab_size to that of "
                "the tokenizer which made these shards, or prepare them with the model's tokenizer"
            )
