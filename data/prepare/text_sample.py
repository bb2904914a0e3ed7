"""A sample of text that is spread over all documents, in one pass and bounded memory."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

_GROUP = 1 << 14
"""Characters of short documents that are taken or left together."""
_LONGEST = 1 << 20
"""Characters of a long document that are."""


def sample_text(documents: Iterator[str], num_characters: int) -> Iterator[str]:
    """Take documents, or stretches of long ones, from everywhere with equal chance.

    Which ones is decided by a hash of their number, so the same documents give the same sample:
    those with the smallest hashes are kept (priority sampling; Duffield, Lund and Thorup 2007,
    with equal weights). All are read, and at most `num_characters` are held in memory.

    Yields:
        Texts of at most `num_characters` in all, in the order of the documents; every document
        if that is enough.
    """
    kept: list[tuple[int, int, list[str]]] = []
    total = 0
    for number, group in enumerate(_groups(documents, num_characters)):
        digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest()
        heapq.heappush(kept, (-int.from_bytes(digest, "little"), number, group))
        total += sum(map(len, group))
        while total > num_characters:
            _, _, dropped = heapq.heappop(kept)
            total -= sum(map(len, dropped))
    for _, _, group in sorted(kept, key=lambda entry: entry[1]):
        yield from group


def _groups(documents: Iterator[str], num_characters: int) -> Iterator[list[str]]:
    """Neighbouring short documents together, long ones in stretches."""
    group: list[str] = []
    size = 0
    longest, full = min(_LONGEST, num_characters), min(_GROUP, num_characters)
    for document in documents:
        for start in range(0, len(document), longest):
            text = document[start : start + longest]
            if group and size + len(text) > full:
                yield group
                group, size = [], 0
            group.append(text)
            size += len(text)
    if group:
        yield group
