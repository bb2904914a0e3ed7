"""A source of conversations: each lies whole in one window, beside others as room is left.

Which ones share a window follows from the conversations' lengths alone, by best fit: any window's
number gives its contents, as in text. What belongs together, the answers of a pair, shares one.

Shape legend: T = seq_len.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray

from triax.common.errors import UserError
from triax.data.config import TooLong
from triax.data.read.packing import best_fit
from triax.data.read.shards import Shard
from triax.data.read.source import Source, Window
from triax.data.read.token_weights import TokenWeights


class Conversations(Source):
    """The windows of shards whose tokens have weights.

    Args:
        shards: with their weights.
        too_long: what is done to conversations that no window takes: they are left out, or their
            end is. Of a pair each answer may take half a window then.

    Raises:
        UserError: the shards are of both kinds, or no conversation is left.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Shard, TokenWeights]],
        seq_len: int,
        vocab_size: int,
        too_long: TooLong = "drop",
    ) -> None:
        self._seq_len, self._vocab_size = seq_len, vocab_size
        self._shards = [shard for shard, _ in shards]
        self._weights = [weights for _, weights in shards]
        sizes = {weights.group_size for weights in self._weights}
        self.prefixes = tuple(shard.prefix for shard in self._shards)
        if len(sizes) > 1:
            raise UserError(
                f"{self.prefixes[0]}: some of its shards hold conversations, others pairs"
            )
        self.group_size = sizes.pop()
        self.num_tokens = sum(shard.num_tokens for shard in self._shards)
        documents = [shard.num_documents for shard in self._shards]
        *self._first_documents, self.num_documents = accumulate(documents, initial=0)
        self.packed, self._packed = None, None
        self.reference: NDArray[np.float32] | None = None
        """What each document's targets amount to under the reference model: (num_documents,)
        log-probabilities; None where nobody needs them."""
        lengths = np.concatenate([shard.document_lengths() for shard in self._shards])
        if len(lengths) % self.group_size:
            raise UserError(f"{self.prefixes[0]}: a pair has only one answer; prepare it anew")
        capacity = seq_len + 1
        too_long_G = lengths.reshape(-1, self.group_size).sum(1) > capacity
        self.num_too_long = int(too_long_G.sum())
        if too_long == "truncate":
            over = np.repeat(too_long_G, self.group_size)
            lengths = np.where(over, np.minimum(lengths, capacity // self.group_size), lengths)
        self._lengths = lengths
        totals_G = lengths.reshape(-1, self.group_size).sum(1)
        self._groups = np.flatnonzero(totals_G <= capacity)
        """The numbers of those that are read."""
        if not len(self._groups):
            raise UserError(
                f"{self.prefixes[0]}: no conversation fits: the shortest has "
                f"{totals_G.min(initial=1 << 62):,} tokens, and data.seq_len = {seq_len:,} takes "
                f'{capacity:,}; raise data.seq_len, or set data.too_long = "truncate"'
            )
        self._bins = best_fit(totals_G[self._groups], capacity)
        self.num_windows = len(self._bins)

    @property
    def news(self) -> str | None:
        """What becomes of those that are too long, in words; None where none are."""
        if not self.num_too_long:
            return None
        what = "conversations" if self.group_size == 1 else "pairs"
        total = self.num_documents // self.group_size
        num_cut = self.num_too_long - (total - len(self._groups))
        fate = f"the ends of {num_cut:,} are left out" if num_cut else "they are left out"
        return (
            f"{self.num_too_long:,} of {total:,} {what} have more than data.seq_len + 1 = "
            f"{self._seq_len + 1:,} tokens: {fate}"
        )

    def with_reference(self, reference: NDArray[np.float32]) -> Self:
        """The same, whose windows tell the reference model's log-probabilities."""
        assert reference.shape == (self.num_documents,), reference.shape
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, reference=reference)
        return other

    def window(self, index: int) -> Window:
        """Read one window: its conversations, and behind them padding without weight.

        Raises:
            UserError: it holds a token id outside [0, vocab_size).
        """
        size = self._seq_len + 1
        documents = self.documents_of(index)
        window = Window(
            tokens=np.zeros(size, np.int64),
            document_ids=np.zeros(size, np.int32),
            num_tokens=int(self._lengths[documents].sum()),
            weights=np.zeros(size, np.float32),
            positions=np.zeros(size, np.int64),
            reference=None if self.reference is None else np.zeros(size, np.float32),
        )
        assert window.weights is not None and window.positions is not None
        place = 0
        for number, document in enumerate(documents):
            length = int(self._lengths[document])
            here = slice(place, place + length)
            shard_number, start = self._start(document)
            shard = self._shards[shard_number]
            window.tokens[here] = self._read(shard, start, length)
            window.weights[here] = self._weights[shard_number].read(start, length)
            window.document_ids[here] = number
            window.positions[here] = np.arange(length)
            if window.reference is not None and self.reference is not None:
                window.reference[place] = self.reference[document]
            place += length
        window.document_ids[place:] = len(documents)
        window.positions[place:] = np.arange(size - place)
        return window

    def documents(self, index: int) -> NDArray[np.int64]:
        """As `Source.documents`; padding counts to the last one, and is no target anywhere."""
        numbers = self.documents_of(index)
        found = np.repeat(numbers, self._lengths[numbers])
        return np.pad(found, (0, self._seq_len + 1 - len(found)), mode="edge")

    def documents_of(self, index: int) -> NDArray[np.int64]:
        """The numbers of a window's conversations, over all shards."""
        assert 0 <= index < self.num_windows, (index, self.num_windows)
        groups = self._groups[self._bins[index]]
        return (groups[:, None] * self.group_size + np.arange(self.group_size)).ravel()

    def _start(self, document: int) -> tuple[int, int]:
        """The shard that holds a conversation, and where in it that begins."""
        number = bisect_right(self._first_documents, document) - 1
        own = int(document) - self._first_documents[number]
        return number, self._shards[number].document_start(own)
