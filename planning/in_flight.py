"""How many micro-batches' activations a pipeline stage holds at once. Imports no torch."""

from __future__ import annotations

from functools import lru_cache

from triax.parallel.config import ParallelConfig
from triax.parallel.stages import SCHEDULES


def micro_batches_in_flight(
    parallel: ParallelConfig, pipeline_rank: int, num_micro_batches: int
) -> tuple[int, ...]:
    """The most forward passes of each of a rank's stages whose backward pass is still to come.

    gpipe holds all (Huang et al. 2019); 1F1B as many as there are stages from here to the end
    (Narayanan et al. 2019), V schedules likewise over both of a rank's stages (Qi et al. 2024);
    interleaved 1F1B warms up with (v - 1) p + 2 (p - 1 - r) passes (Narayanan et al. 2021), its
    zero-bubble form with p - 1 - r for the last term (Qi et al. 2023).

    Args:
        parallel: the schedule.
        pipeline_rank: r.
        num_micro_batches: of a step, on one data-parallel rank.
    """
    if parallel.pipeline == 1:
        return (1,)
    return _in_flight(
        parallel.pipeline_schedule,
        parallel.pipeline,
        parallel.stages_per_rank,
        pipeline_rank,
        num_micro_batches,
    )


@lru_cache(maxsize=4096)
def _in_flight(schedule: str, ranks: int, per_rank: int, rank: int, count: int) -> tuple[int, ...]:
    traits = SCHEDULES[schedule]
    if schedule == "gpipe":
        return (count,)
    if not traits.has_several_stages:
        return (min(count, ranks - rank),)
    if traits.is_v:
        return min(count, 2 * ranks - rank), min(count, rank + 1)
    rounds = max(1, count // ranks)
    each = count // rounds
    last = (1 if traits.splits_backward else 2) * (ranks - 1 - rank)
    passes = min((per_rank - 1) * each + last + 1, per_rank * count)
    # Passes go through the rank's stages in turn, `each` micro-batches at a time.
    held = [0] * per_rank
    for number in range(passes):
        held[number // each % per_rank] += 1
    return tuple(min(each_held, count) for each_held in held)
