"""A step that cuts out what stood before, token by token (Lee et al. 2022, section 4.1).

Every window of so many tokens is hashed, and of equal ones the first stays: so of a stretch that is
repeated, all tokens go, wherever it lies in its document. Lee et al. find the same stretches by a
suffix array of the whole corpus in memory; hashes are sorted on disk instead, in 24 bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triax.data.clean.config import SubstringsConfig
from triax.data.clean.document import Document
from triax.data.clean.duplicates import KeyedPiece, Keys, decide_by_keys
from triax.data.clean.groups import KEY
from triax.data.clean.shingles import token_hashes, window_hashes

Array = NDArray[Any]


class RepeatedSubstrings:
    """Stretches of tokens that stood before. An item is a token, with which a window begins."""

    def __init__(self, config: SubstringsConfig) -> None:
        self._length = config.tokens
        self.against = config.against

    def keys(self, documents: Sequence[Document]) -> Keys:
        """See `GlobalStep`. A window that overlaps the first of its kind is passed over, or of a
        text that repeats a short phrase nothing would stay."""
        contents = [_bytes(document.text) for document in documents]
        hashes_W, starts_W = token_hashes(b"\n".join(contents))
        ends = np.cumsum([len(content) + 1 for content in contents])
        document_W = np.searchsorted(ends, starts_W, side="right")
        high, low = window_hashes(hashes_W, self._length)
        lasts = document_W[self._length - 1 :]
        items = np.flatnonzero(document_W[: len(lasts)] == lasts)
        _, first, group = np.unique(high[items], return_index=True, return_inverse=True)
        firsts = items[first][group]
        overlap = (items - firsts < self._length) & (document_W[items] == document_W[firsts])
        is_first = items == firsts
        kept = items[is_first]
        keys = np.empty(len(kept), KEY)
        keys["high"], keys["low"], keys["item"] = high[kept], low[kept], kept
        repeated = items[~is_first & ~overlap].astype(np.uint64)
        return Keys(keys, repeated, np.empty((0, 0), np.uint32))

    def decide(
        self, pieces: Sequence[KeyedPiece], folder: Path, memory_bytes: int
    ) -> Iterator[tuple[int, Array]]:
        return decide_by_keys(pieces, folder, memory_bytes)

    def num_items(self, document: Document) -> int:
        return len(token_hashes(_bytes(document.text))[1])

    def drop(self, document: Document, first_item: int, dropped: Array) -> str | None:
        if not len(dropped):
            return None
        content = _bytes(document.text)
        starts_W = token_hashes(content)[1]
        begins = dropped.astype(np.int64) - first_item
        changes = np.zeros(len(starts_W) + 1, np.int64)
        np.add.at(changes, begins, 1)
        np.add.at(changes, begins + self._length, -1)
        is_cut_W = np.cumsum(changes[:-1]) > 0
        edges = np.flatnonzero(np.diff(is_cut_W, prepend=False, append=False))
        bounds = np.append(starts_W, len(content))[edges].tolist()
        # What stands between an odd edge and the next even one is cut out.
        ends = [0, *bounds, len(content)]
        text = b"".join(content[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)).decode()
        document.text = text.rstrip() if is_cut_W[-1] else text
        return None if document.text.strip() else "repeated"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
