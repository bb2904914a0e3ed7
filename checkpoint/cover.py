"""Whether rectangles cover a tensor: every element exactly once. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Rectangle = tuple[Sequence[int], Sequence[int]]
"""Where it begins in each dimension, and its extent there."""


def check_cover(name: str, size: Sequence[int], rectangles: Sequence[Rectangle]) -> None:
    """Let through rectangles that lie within a tensor, apart from each other, and leave no gap.

    Costs a sort, and a comparison of those that meet in one dimension: of the shards of a mesh
    these are few.

    Args:
        name: the tensor's, for messages.
        size: the tensor's shape.

    Raises:
        ValueError: they aren't such rectangles.
    """
    for offsets, extents in rectangles:
        if not len(offsets) == len(extents) == len(size):
            raise ValueError(f"{name} has parts of another number of dimensions")
        for offset, extent, whole in zip(offsets, extents, size, strict=True):
            if offset < 0 or extent < 0 or offset + extent > whole:
                raise ValueError(f"{name} has a part that reaches outside of it")
    if min(size, default=0) < 0 or sum(prod(e) for _, e in rectangles) != prod(size):
        raise ValueError(f"{name} has parts missing, or parts that overlap")
    filled = [(tuple(o), tuple(e)) for o, e in rectangles if prod(e) > 0]
    # With the volumes right, two that overlap also mean a gap.
    if _overlap(filled, len(size)):
        raise ValueError(f"{name} has parts that overlap")


def _overlap(filled: list[tuple[tuple[int, ...], tuple[int, ...]]], num_dims: int) -> bool:
    """Whether any two of them, none empty, have an element in common."""
    if len(filled) < 2:
        return False
    # Sweep along the dimension that parts them most, against those that are still open there.
    along = max(range(num_dims), key=lambda dim: len({offsets[dim] for offsets, _ in filled}))
    filled.sort(key=lambda rectangle: rectangle[0][along])
    still_open: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for offsets, extents in filled:
        still_open = [(o, e) for o, e in still_open if o[along] + e[along] > offsets[along]]
        for others, their_extents in still_open:
            if all(
                others[dim] < offsets[dim] + extents[dim]
                and offsets[dim] < others[dim] + their_extents[dim]
                for dim in range(num_dims)
            ):
                return True
        still_open.append((offsets, extents))
    return False
