"""Which processes of a layout stand for all, and what their groups are called. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from triax.parallel.layout import AXES, Layout


def chosen_ranks(layout: Layout) -> tuple[int, ...]:
    """A pipeline from end to end, the last process of every other axis beside it, and the very
    last of all: each kind of group has two members that can be compared.

    Returns:
        Ranks, rising.
    """
    corner = dict.fromkeys(AXES, 0)
    chosen = [corner | {"pipeline": stage} for stage in range(layout.pipeline)]
    for axis in AXES[1:]:
        chosen.append(corner | {axis: getattr(layout, axis) - 1})
    chosen.append({axis: getattr(layout, axis) - 1 for axis in AXES})
    return tuple(sorted({_rank_of(layout, places) for places in chosen}))


def axis_of(layout: Layout, ranks: Sequence[int]) -> str:
    """What a group is over: an axis, several joined by " x ", or "alone"."""
    if len(ranks) == 1:
        return "alone"
    places = [layout.coordinates(rank) for rank in ranks]
    along = [axis for axis in AXES if len({place[axis] for place in places}) > 1]
    is_all = along == [axis for axis in AXES if getattr(layout, axis) > 1]
    return "all" if is_all and len(along) > 1 else " x ".join(along)


def _rank_of(layout: Layout, places: dict[str, int]) -> int:
    rank = 0
    for axis, size in zip(AXES, layout.sizes, strict=True):
        rank = rank * size + places[axis]
    return rank
