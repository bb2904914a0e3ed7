"""What shards hold, in figures; and whether every token of them can be one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from triax.common.errors import UserError
from triax.data.read.shards import Shard

_QUANTILES = {"shortest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "longest": 1.0}


@dataclass(frozen=True)
class Contents:
    """Figures of a dataset."""

    num_shards: int
    dtypes: tuple[str, ...]
    num_tokens: int
    num_documents: int
    lengths: dict[str, int]
    """Of documents, in tokens, by the name of the quantile."""
    mean_length: float
    histogram: dict[int, int]
    """Documents by length: those of up to so many tokens, and more than half as many."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "num_shards": self.num_shards,
            "dtypes": list(self.dtypes),
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "lengths": self.lengths | {"mean": self.mean_length},
            "histogram": {str(most): count for most, count in self.histogram.items()},
        }


def histogram(lengths: NDArray[np.int64]) -> dict[int, int]:
    """How many lengths are up to each power of two, and above the one before; without empty ends.

    The first class is 0 and 1.
    """
    if not len(lengths):
        return {}
    bits = np.bincount(np.ceil(np.log2(lengths.clip(min=1))).astype(np.int64))
    first = int(bits.nonzero()[0][0])
    return {1 << power: int(bits[power]) for power in range(first, len(bits))}


def num_duplicates(shards: Sequence[Shard]) -> int:
    """Documents that stand in the shards once more before; reads all tokens.

    They are told apart by 64-bit hashes, which are held, in some 16 bytes a document.
    """
    hashes = np.fromiter(document_hashes(shards), np.uint64)
    return len(hashes) - len(np.unique(hashes))


def document_hashes(shards: Iterable[Shard]) -> Iterator[int]:
    """64 bits of each document's tokens."""
    for shard in shards:
        start = 0
        for length in shard.document_lengths():
            yield xxhash.xxh3_64_intdigest(shard.read(start, int(length)).data)
            start += int(length)


def inspect(shards: Sequence[Shard]) -> Contents:
    """Figures of a dataset's shards, by their indices alone."""
    lengths = np.concatenate([shard.document_lengths() for shard in shards])
    return Contents(
        num_shards=len(shards),
        dtypes=tuple(sorted({shard.dtype.name for shard in shards})),
        num_tokens=sum(shard.num_tokens for shard in shards),
        num_documents=len(lengths),
        lengths={
            name: int(np.quantile(lengths, quantile, method="nearest"))
            for name, quantile in _QUANTILES.items()
        },
        mean_length=float(lengths.mean()),
        histogram=histogram(lengths),
    )


def check_tokens(shards: Sequence[Shard], vocab_size: int | None) -> int:
    """The largest token there is; reads all of them.

    Raises:
        UserError: a token is negative, or outside the vocabulary.
    """
    largest = 0
    for shard in shards:
        low, high = shard.token_range()
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            raise UserError(
                f"{shard.prefix}: tokens from {low:,} to {high:,}, expected 0 to "
                f"{'...' if vocab_size is None else f'{vocab_size - 1:,}'}; these shards were made "
                "with another tokenizer, or are damaged: prepare them anew"
            )
        largest = max(largest, high)
    return largest


def document_tokens_at(shards: Sequence[Shard], document: int, limit: int) -> tuple[list[int], int]:
    """The first tokens of a document, at most so many, and how many it has in all.

    Args:
        document: its number over all shards, from 0.

    Raises:
        UserError: there is no such document.
    """
    number = document
    for shard in shards:
        if 0 <= number < shard.num_documents:
            start = shard.document_start(number)
            length = shard.document_start(number + 1) - start
            return shard.read(start, min(length, limit)).tolist(), length
        number -= shard.num_documents
    total = sum(shard.num_documents for shard in shards)
    raise UserError(f"--document: {document}, expected 0 to {total - 1:,}")
