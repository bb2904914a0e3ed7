"""Whether rectangles cover a tensor: every element exactly once. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, product, repeat

Rectangle = tuple[Sequence[int], Sequence[int]]
"""Where it begins in each dimension, and its extent there."""
_MOST_DIMENSIONS = 8
"""Of a model's tensors; a rectangle has 256 corners then."""


def check_cover(name: str, size: Sequence[int], rectangles: Sequence[Rectangle]) -> None:
    """Let through rectangles that lie within a tensor, apart from each other, and leave no gap.

    A rectangle is known by its corners, counted up and down by turns: those are the differences,
    along all dimensions, of the function that is one inside of it and zero outside. So rectangles
    cover the tensor once just where all their corners cancel out but the tensor's own. The cost
    grows with their number only, however they lie.

    Args:
        name: the tensor's, for messages.
        size: the tensor's shape.

    Raises:
        ValueError: they aren't such rectangles.
    """
    _require_integers(name, size)
    if len(size) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {len(size)} dimensions")
    for offsets, extents in rectangles:
        if not len(offsets) == len(extents) == len(size):
            raise ValueError(f"{name} has parts of another number of dimensions")
        _require_integers(name, [*offsets, *extents])
        for offset, extent, whole in zip(offsets, extents, size, strict=True):
            if offset < 0 or extent < 0 or offset + extent > whole:
                raise ValueError(f"{name} has a part that reaches outside of it")
    corners: defaultdict[tuple[int, ...], int] = defaultdict(int)
    turns = [(ends, 1 - 2 * (sum(ends) % 2)) for ends in product((0, 1), repeat=len(size))]
    whole_one = ([0] * len(size), size)
    for sign, (offsets, extents) in chain(zip(repeat(1), rectangles), [(-1, whole_one)]):
        for ends, turn in turns:
            corner = tuple(o + e * end for o, e, end in zip(offsets, extents, ends, strict=True))
            corners[corner] += sign * turn
    if min(size, default=0) < 0 or any(corners.values()):
        raise ValueError(f"{name} has parts missing, or parts that overlap")


def _require_integers(name: str, numbers: Sequence[int]) -> None:
    if not all(type(number) is int for number in numbers):
        raise ValueError(f"{name} has a size that is no whole number")
