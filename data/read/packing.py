"""Pieces of text into bins of one size, as few as can be found quickly; imports no torch.

Best fit, the longest first: a piece goes into the bin with the least room that still takes it, else
into a new one, which needs at most 11/9 of the fewest bins that there are (Johnson et al. 1974).
Pieces of one length are treated together, and so are bins filled alike (histograms, as in Krell et
al. 2021, "Efficient sequence packing without cross-contamination"): the time goes with the number
of lengths, not of pieces.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Contents = tuple[tuple[int, int], ...]
"""What a bin holds: lengths, and how many pieces of each."""


@dataclass(frozen=True)
class Bins:
    """Which pieces lie together. Each lies in exactly one bin."""

    pieces: NDArray[np.int64]
    """[num_pieces]: their numbers, bin by bin; within a bin ascending."""
    offsets: NDArray[np.int64]
    """[num_bins + 1]: bin b holds `pieces[offsets[b] : offsets[b + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """The numbers of one bin's pieces."""
        return self.pieces[self.offsets[number] : self.offsets[number + 1]]


def best_fit(lengths: NDArray[np.integer[Any]], capacity: int) -> Bins:
    """Put pieces into bins of one capacity: best fit, decreasing.

    The result depends on nothing but the arguments. Bins come in the order of their first piece.

    Args:
        lengths: [num_pieces], each from 1 to `capacity`.
        capacity: of each bin, in the same unit.
    """
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        return Bins(np.zeros(0, np.int64), np.zeros(1, np.int64))
    assert lengths.min() >= 1 and lengths.max() <= capacity, (lengths.min(), lengths.max())
    by_length, counts = np.unique(lengths, return_counts=True)
    rooms = _Rooms(capacity)
    for length, count in zip(by_length[::-1].tolist(), counts[::-1].tolist(), strict=True):
        rooms.add(length, count)
    order = np.argsort(lengths, kind="stable")
    next_place = dict(zip(by_length.tolist(), (np.cumsum(counts) - counts).tolist(), strict=True))
    filled: list[NDArray[np.int64]] = []
    for num_bins, contents in rooms.all():
        columns = []
        for length, each in contents:
            place = next_place[length]
            next_place[length] = place + num_bins * each
            columns.append(order[place : next_place[length]].reshape(num_bins, each))
        filled.append(np.sort(np.concatenate(columns, axis=1), axis=1))
    return _in_order(filled)


def _in_order(filled: list[NDArray[np.int64]]) -> Bins:
    """Bins by their first piece.

    Args:
        filled: matrices [num_bins, num_pieces] of pieces' numbers, a row for each bin.
    """
    sizes = np.concatenate([np.full(len(rows), rows.shape[1]) for rows in filled])
    starts = np.cumsum(sizes) - sizes
    flat = np.concatenate([rows.ravel() for rows in filled])
    by_first = np.argsort(flat[starts])
    offsets = np.append(0, np.cumsum(sizes[by_first]))
    shifts = np.repeat(starts[by_first] - offsets[:-1], sizes[by_first])
    return Bins(flat[np.arange(len(flat)) + shifts], offsets)


class _Rooms:
    """Bins so far, by the room that is left in them; those with the same contents together."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._sizes: list[int] = []
        """Of the rooms that some bin has, ascending."""
        self._bins: dict[int, list[tuple[int, _Contents]]] = {}

    def add(self, length: int, count: int) -> None:
        """Put so many pieces of one length, no longer than any before, where they fit best."""
        while count:
            place = bisect_left(self._sizes, length)
            is_new = place == len(self._sizes)
            room = self._capacity if is_new else self._sizes[place]
            num_bins, contents = (count, ()) if is_new else self._pop(room, place)
            each = room // length
            num_filled = min(num_bins, count // each)
            count -= num_filled * each
            rest = count if num_filled < num_bins else 0
            self._push(room - each * length, num_filled, (*contents, (length, each)))
            if rest:
                self._push(room - rest * length, 1, (*contents, (length, rest)))
                count = 0
            if not is_new:
                self._push(room, num_bins - num_filled - bool(rest), contents)

    def all(self) -> Iterator[tuple[int, _Contents]]:
        """How many bins have which contents; all of them together take each piece once."""
        for size in self._sizes:
            yield from self._bins[size]

    def _push(self, room: int, num_bins: int, contents: _Contents) -> None:
        if not num_bins:
            return
        if room not in self._bins:
            self._bins[room] = []
            insort(self._sizes, room)
        self._bins[room].append((num_bins, contents))

    def _pop(self, room: int, place: int) -> tuple[int, _Contents]:
        found = self._bins[room].pop()
        if not self._bins[room]:
            del self._bins[room], self._sizes[place]
        return found
