"""Pieces into bins: all of them, once, as best fit would one by one."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.data.read.packing import best_fit


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The room left in each bin by best fit decreasing, as the books have it."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect_left(rooms, length)
        insort(rooms, (rooms.pop(place) if place < len(rooms) else capacity) - length)
    return rooms


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_bins_hold_every_piece_once_and_are_those_of_best_fit(
    data: st.DataObject, capacity: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=120))
    bins = best_fit(np.array(lengths, np.int64), capacity)
    held = [bins[number].tolist() for number in range(len(bins))]
    assert sorted(bins.pieces.tolist()) == list(range(len(lengths)))
    assert all(pieces == sorted(pieces) and pieces for pieces in held)
    assert [pieces[0] for pieces in held] == sorted(pieces[0] for pieces in held)
    rooms = [capacity - sum(lengths[piece] for piece in pieces) for pieces in held]
    assert all(room >= 0 for room in rooms)
    assert sorted(rooms) == one_by_one(lengths, capacity)


def test_many_pieces_fill_their_bins() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 200_000).astype(np.int64)
    lengths = lengths.clip(1, 4097)
    bins = best_fit(lengths, 4097)
    assert lengths.sum() / (len(bins) * 4097) > 0.998
