"""One source of samples: its shards, seen as numbered windows of tokens.

A window is `seq_len + 1` tokens of one shard. In a stream they lie at stride `seq_len`: the last
token of one window is the first of the next, so each token but a shard's first is a target exactly
once, and the few tokens at a shard's end that fill no window are not used. Packed windows hold
whole documents; see `triax.data.read.packed`.

Shape legend: T = seq_len.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triax.common.errors import UserError
from triax.data.read.packed import PackedShard, open_packed
from triax.data.read.shards import Shard, find_shards

Packing = Literal["stream", "best-fit"]


@dataclass(frozen=True)
class Window:
    """One sample, inputs and targets still in one piece."""

    tokens: NDArray[np.int64]
    """(T + 1,)."""
    document_ids: NDArray[np.int32]
    """(T + 1,); equal where tokens are of one document, counted from 0 in this window."""
    num_tokens: int | None = None
    """So many are text, what follows is padding; None: all are."""
    weights: NDArray[np.float32] | None = None
    """(T + 1,): how much each token counts as a target; None: each once."""
    positions: NDArray[np.int64] | None = None
    """(T + 1,): of each token in its conversation; None: in the window."""
    reference: NDArray[np.float32] | None = None
    """(T + 1,): see `Batch.reference_BT`."""

    def cut(self, num_pieces: int) -> list[Window]:
        """So many equal parts, each as long as to have its last token's target too."""
        if num_pieces == 1:
            return [self]
        assert self.num_tokens is None, "what is packed whole is not cut"
        length = (len(self.tokens) - 1) // num_pieces
        starts = range(0, length * num_pieces, length)
        parts = [slice(start, start + length + 1) for start in starts]
        return [
            Window(self.tokens[part], self.document_ids[part] - self.document_ids[part.start])
            for part in parts
        ]


@dataclass(frozen=True)
class Packed:
    """What packing has made of a source."""

    cut: float
    """Share of the documents that are cut, since no sample can hold them."""
    padding: float
    """Share of the samples' places that stay empty."""

    @staticmethod
    def of(shards: Sequence[PackedShard], seq_len: int) -> Packed:
        """Over all shards of a source."""
        places = sum(shard.num_windows for shard in shards) * (seq_len + 1)
        num_documents = sum(shard.num_documents for shard in shards)
        return Packed(
            sum(shard.num_cut for shard in shards) / max(num_documents, 1),
            (places - sum(shard.num_tokens for shard in shards)) / max(places, 1),
        )

    def describe(self) -> str:
        """In a clause."""
        return f"{self.cut:.2%} of documents cut, {self.padding:.2%} padding"


class Source:
    """The windows of one or several shards, in the shards' order."""

    def __init__(
        self, shards: Sequence[Shard], seq_len: int, vocab_size: int, packing: Packing = "stream"
    ) -> None:
        """Number the windows of open shards.

        Raises:
            UserError: the shards hold no whole window.
        """
        assert shards and seq_len >= 1
        self._seq_len = seq_len
        self._vocab_size = vocab_size
        packed = [open_packed(s, seq_len) for s in shards] if packing == "best-fit" else None
        counts = [
            (shard.num_tokens - 1) // seq_len if packed is None else packed[number].num_windows
            for number, shard in enumerate(shards)
        ]
        self._shards = [s for s, count in zip(shards, counts, strict=True) if count]
        self._packed = packed and [each for each in packed if each.num_windows]
        self.packed = None if packed is None else Packed.of(packed, seq_len)
        counts = [count for count in counts if count]
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
    def open(
        prefix: Path | str, seq_len: int, vocab_size: int, packing: Packing = "stream"
    ) -> Source:
        """Open all shards of a prefix (see `find_shards`) as text; `open_source` looks what it is.

        Raises:
            UserError: a shard is missing or damaged, or there is no whole window.
        """
        shards = [Shard.open(path) for path in find_shards(prefix)]
        return Source(shards, seq_len, vocab_size, packing)

    @property
    def is_remote(self) -> bool:
        """Whether windows are read from a store."""
        return any(shard.is_remote for shard in self._shards)

    def window(self, index: int) -> Window:
        """Read one window, `index` in range(num_windows).

        Raises:
            UserError: it holds a token id outside [0, vocab_size).
        """
        assert 0 <= index < self.num_windows, (index, self.num_windows)
        number = bisect_right(self._first_windows, index) - 1
        shard = self._shards[number]
        if self._packed is not None:
            pieces = self._packed[number].pieces(index - self._first_windows[number])
            return self._packed_window(shard, pieces)
        start = (index - self._first_windows[number]) * self._seq_len
        tokens = self._read(shard, start, self._seq_len + 1)
        return Window(tokens, shard.document_ids(start, self._seq_len + 1))

    def _packed_window(self, shard: Shard, pieces: Sequence[tuple[int, int]]) -> Window:
        """Pieces one behind the other, each a document of its own, as is the padding."""
        num_tokens = sum(length for _, length in pieces)
        tokens = np.zeros(self._seq_len + 1, np.int64)
        document_ids = np.full(self._seq_len + 1, len(pieces), np.int32)
        place = 0
        for number, (start, length) in enumerate(pieces):
            tokens[place : place + length] = self._read(shard, start, length)
            document_ids[place : place + length] = number
            place += length
        return Window(tokens, document_ids, num_tokens)

    def documents(self, index: int) -> NDArray[np.int64]:
        """Which of the `num_documents` documents each token of a window is from: (T + 1,).

        They are counted over the shards that have windows, which are not packed.
        """
        assert self._packed is None
        number = bisect_right(self._first_windows, index) - 1
        shard = self._shards[number]
        start = (index - self._first_windows[number]) * self._seq_len
        first = self._first_documents[number] + shard.document_at(start)
        return first + shard.document_ids(start, self._seq_len + 1).astype(np.int64)

    def _read(self, shard: Shard, start: int, length: int) -> NDArray[np.int64]:
        tokens = shard.read(start, length)
        # One comparison: as unsigned numbers, negative ids are above every vocabulary.
        bad = tokens.view(np.uint64) >= self._vocab_size
        if bad.any():
            first = int(bad.argmax())
            raise UserError(
                f"{shard.prefix}: token id {tokens[first]} at position {start + first:,} is not in "
                f"[0, model.vocab_size = {self._vocab_size:,}); set model.vocab_size to that of "
                "the tokenizer which made these shards, or prepare them with the model's tokenizer"
            )
        return tokens
