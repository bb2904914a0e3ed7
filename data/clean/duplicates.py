"""Steps that look at all documents: duplicates, letter by letter or by MinHash.

Such a step has three parts. Each piece's keys are made beside its text (`keys`). What to drop is
decided from all keys, out of core (`decide`): of equals the first stays, in the order of the
INPUTs and of the documents within them. Then each piece is read again without the rest (`Drops`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from triax.data.clean.config import ExactConfig, NearConfig
from triax.data.clean.document import Document
from triax.data.clean.groups import KEY, Components, later_items
from triax.data.clean.minhash import band_keys, signatures

Array = NDArray[Any]
_PIECE_BITS = np.uint64(32)
_PAIRS_AT_ONCE = 1 << 14
_PARAGRAPHS = re.compile(r"(\n{2,})")
_LINES = re.compile(r"(\n)")


class Keys(NamedTuple):
    """What a piece gives to a step over all documents."""

    keys: Array
    """Of `KEY`; items are numbered within the piece."""
    repeated: Array
    """Items that stand earlier in the same piece: never more than one of a kind in `keys`."""
    signatures: Array
    """uint32 [documents, hashes], for `NearConfig.threshold`; else empty."""


class KeyedPiece(NamedTuple):
    """Where a piece's keys lie."""

    keys: Path
    signatures: Path
    num_documents: int


class GlobalStep(Protocol):
    """A step that has to know all documents."""

    @property
    def against(self) -> tuple[str, ...]:
        """INPUTs whose documents count as earlier ones."""

    def keys(self, documents: Sequence[Document]) -> Keys:
        """A piece's keys."""

    def decide(
        self, pieces: Sequence[KeyedPiece], folder: Path, memory_bytes: int
    ) -> Iterator[tuple[int, Array]]:
        """Numbers of pieces, and their items to drop; a piece may come several times."""

    def num_items(self, document: Document) -> int:
        """Items in a document."""

    def drop(self, document: Document, first_item: int, dropped: Array) -> str | None:
        """Take items out of a document, whose own begin at `first_item`.

        Returns:
            Why it is dropped as a whole, if it is.
        """


class ExactDuplicates:
    """Documents, paragraphs or lines that stood before."""

    def __init__(self, config: ExactConfig) -> None:
        self._config = config
        self.against = config.against

    def keys(self, documents: Sequence[Document]) -> Keys:
        seen: dict[bytes, int] = {}
        repeated: list[int] = []
        parts = (part for document in documents for part in self._parts(document.text)[::2])
        for item, part in enumerate(parts):
            if self._counts(part):
                digest = xxhash.xxh3_128_digest(part.strip().encode())
                if seen.setdefault(digest, item) != item:
                    repeated.append(item)
        keys = np.empty(len(seen), KEY)
        halves = np.frombuffer(b"".join(seen), "<u8").reshape(-1, 2)
        keys["high"], keys["low"] = halves[:, 0], halves[:, 1]
        keys["item"] = np.fromiter(seen.values(), np.uint64, len(seen))
        return Keys(keys, np.array(repeated, np.uint64), np.empty((0, 0), np.uint32))

    def decide(
        self, pieces: Sequence[KeyedPiece], folder: Path, memory_bytes: int
    ) -> Iterator[tuple[int, Array]]:
        return decide_by_keys(pieces, folder, memory_bytes)

    def num_items(self, document: Document) -> int:
        return len(self._parts(document.text)[::2])

    def drop(self, document: Document, first_item: int, dropped: Array) -> str | None:
        if not len(dropped):
            return None
        if self._config.unit == "document":
            return "duplicate"
        parts = self._parts(document.text)
        for item in dropped:
            # With what parts it from the next one.
            place = 2 * (int(item) - first_item)
            parts[place : place + 2] = [""] * len(parts[place : place + 2])
        document.text = "".join(parts).strip("\n")
        return None if document.text.strip() else "duplicate"

    def _parts(self, text: str) -> list[str]:
        """The text's units, with what parts them at odd places."""
        if self._config.unit == "document":
            return [text]
        return (_LINES if self._config.unit == "line" else _PARAGRAPHS).split(text)

    def _counts(self, part: str) -> bool:
        return self._config.unit == "document" or len(part.strip()) >= self._config.min_characters


class NearDuplicates:
    """Documents that share a band with another, and those with these, and so on."""

    def __init__(self, config: NearConfig) -> None:
        self._config = config
        self.against = config.against

    def keys(self, documents: Sequence[Document]) -> Keys:
        config = self._config
        matrix, numbers = signatures([document.text for document in documents], config)
        keys = np.empty((len(matrix), config.bands), KEY)
        keys["high"] = band_keys(matrix, config)
        keys["low"] = np.arange(config.bands)[None]
        keys["item"] = numbers[:, None]
        rows = np.zeros((len(documents) if config.threshold else 0, matrix.shape[1]), np.uint32)
        if config.threshold:
            rows[numbers] = matrix
        return Keys(keys.reshape(-1), np.empty(0, np.uint64), rows)

    def decide(
        self, pieces: Sequence[KeyedPiece], folder: Path, memory_bytes: int
    ) -> Iterator[tuple[int, Array]]:
        offsets = np.cumsum([0, *(piece.num_documents for piece in pieces)])
        components = Components(int(offsets[-1]))
        for later, firsts in later_items([piece.keys for piece in pieces], folder, memory_bytes):
            if self._config.threshold:
                is_near = self._are_near(pieces, later, firsts)
                later, firsts = later[is_near], firsts[is_near]
            components.connect(*(_dense(items, offsets) for items in (later, firsts)))
        labels = components.labels()
        for number, (begin, end) in enumerate(pairwise(offsets)):
            yield number, np.flatnonzero(labels[begin:end] != np.arange(begin, end))

    def _are_near(self, pieces: Sequence[KeyedPiece], ones: Array, others: Array) -> Array:
        """Whether pairs of items have `threshold` of their hashes equal."""
        parts = [np.empty(0, bool)]
        for begin in range(0, len(ones), _PAIRS_AT_ONCE):
            span = slice(begin, begin + _PAIRS_AT_ONCE)
            equal = _rows(pieces, ones[span]) == _rows(pieces, others[span])
            parts.append(equal.mean(1) >= self._config.threshold)
        return np.concatenate(parts)

    def num_items(self, document: Document) -> int:
        del document
        return 1

    def drop(self, document: Document, first_item: int, dropped: Array) -> str | None:
        del document, first_item
        return "near_duplicate" if len(dropped) else None


def decide_by_keys(
    pieces: Sequence[KeyedPiece], folder: Path, memory_bytes: int
) -> Iterator[tuple[int, Array]]:
    """What `GlobalStep.decide` gives where of equal keys all items but the first are dropped."""
    for later, _ in later_items([piece.keys for piece in pieces], folder, memory_bytes):
        yield from by_piece(later)


def numbered(keys: Array, piece: int) -> Array:
    """A piece's keys with items that are numbered through all pieces."""
    keys["item"] |= np.uint64(piece) << _PIECE_BITS
    return keys


def by_piece(items: Array) -> Iterator[tuple[int, Array]]:
    """Items of all pieces, parted: each piece's number and its items within it."""
    items = np.sort(items)
    numbers = (items >> _PIECE_BITS).astype(np.int64)
    for number in np.unique(numbers):
        span = slice(*np.searchsorted(numbers, [number, number + 1]))
        yield int(number), items[span] & np.uint64(0xFFFFFFFF)


def _dense(items: Array, offsets: Array) -> Array:
    within: Array = (items & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return within + offsets[(items >> _PIECE_BITS).astype(np.int64)]


def _rows(pieces: Sequence[KeyedPiece], items: Array) -> Array:
    numbers = (items >> _PIECE_BITS).astype(np.int64)
    within = (items & np.uint64(0xFFFFFFFF)).astype(np.int64)
    found: Array | None = None
    for number in np.unique(numbers):
        is_here = numbers == number
        rows = np.load(pieces[number].signatures, mmap_mode="r")
        if found is None:
            found = np.empty((len(items), rows.shape[1]), rows.dtype)
        found[is_here] = rows[within[is_here]]
    assert found is not None
    return found
