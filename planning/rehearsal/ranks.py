"""Which processes of a layout stand for all, and what their groups are called. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from triax.parallel.config import ParallelConfig
from triax.parallel.layout import AXES, Layout
from triax.parallel.stages import schedule_problem

_MOST_STAGES = 4
"""Pipeline ranks that are all chosen."""


def enough_micro_batches(parallel: ParallelConfig, count: int) -> int:
    """How many of a process's micro-batches show all that more would.

    Without a pipeline two: the first finds no gradients, the last reduces them. With one twice as
    many as it has processes, or a few more that the schedule can do: then each has as many passes
    in flight as ever (`planning.in_flight`). gpipe has all in flight.
    """
    if parallel.pipeline == 1:
        return min(count, 2)
    if parallel.pipeline_schedule == "gpipe":
        return count
    some = range(2 * parallel.pipeline, count)
    return next((num for num in some if schedule_problem(parallel, num) is None), count)


def chosen_ranks(layout: Layout) -> tuple[int, ...]:
    """A pipeline from end to end, the last process of every other axis beside it, and the very
    last of all: each kind of group has two members that can be compared. Of a pipeline of more
    than four processes the first two and the last two: those between do what the second does.

    Returns:
        Ranks, rising.
    """
    corner = dict.fromkeys(AXES, 0)
    stages = sorted({0, 1, layout.pipeline - 2, layout.pipeline - 1} & {*range(layout.pipeline)})
    if layout.pipeline <= _MOST_STAGES:
        stages = list(range(layout.pipeline))
    chosen = [corner | {"pipeline": stage} for stage in stages]
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
