"""Which layers a pipeline stage holds, and where stages live. Arithmetic; imports no torch.

Stages are numbered in the order of the layers. A process holds one of them, or several: looped
schedules give rank r the stages r, r + p, r + 2p, ...; V schedules r and 2p - 1 - r.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.parallel.config import ParallelConfig

_EMBEDDING_SHARE = 1 / 6
"""Of the head's cost: the embedding multiplies nothing, but is as much to gather and update."""


@dataclass(frozen=True)
class ScheduleTraits:
    """What has to be known of a schedule before it runs."""

    has_several_stages: bool = False
    """Whether a process holds more than one stage."""
    is_v: bool = False
    """Whether the second stage of a process counts from the end."""
    splits_backward: bool = False
    """Whether gradients of inputs and of weights are made at different times."""
    fills_all_stages: bool = False
    """Whether a step needs as many micro-batches as there are stages."""


SCHEDULES = {
    "gpipe": ScheduleTraits(),
    "1f1b": ScheduleTraits(fills_all_stages=True),
    "interleaved-1f1b": ScheduleTraits(has_several_stages=True),
    "interleaved-zero-bubble": ScheduleTraits(has_several_stages=True, splits_backward=True),
    "zbv-zero-bubble": ScheduleTraits(has_several_stages=True, is_v=True, splits_backward=True),
    "dualpipe-v": ScheduleTraits(
        has_several_stages=True, is_v=True, splits_backward=True, fills_all_stages=True
    ),
}
"""By `parallel.pipeline_schedule`: Huang et al. 2019; Narayanan et al. 2019 and 2021; Qi et al.
2023 and 2024; DeepSeek-AI 2024."""


SPLIT_BACKWARD_NEEDS_TORCH = (2, 13)
"""Earlier ones can't start a backward pass from a Python function's node (seen with 2.11)."""


def num_stages(config: ParallelConfig) -> int:
    """Stages of the whole pipeline; 1 where there is none, whatever its schedule would be."""
    traits = SCHEDULES[config.pipeline_schedule]
    if config.pipeline == 1 or not traits.has_several_stages:
        return config.pipeline
    return config.pipeline * (2 if traits.is_v else config.stages_per_rank)


def rank_of_stage(stage: int, config: ParallelConfig) -> int:
    """The rank on the pipeline axis that holds a stage."""
    if SCHEDULES[config.pipeline_schedule].is_v:
        return min(stage, 2 * config.pipeline - 1 - stage)
    return stage % config.pipeline


def stages_of_rank(rank: int, config: ParallelConfig) -> list[int]:
    """The stages that a rank on the pipeline axis holds."""
    return [s for s in range(num_stages(config)) if rank_of_stage(s, config) == rank]


def split_layers(model: ModelConfig, config: ParallelConfig, seq_len: int) -> list[range]:
    """The layers of every stage: as `pipeline_split` says, or such that the costliest stage costs
    least, counting the embedding in the first and the head in the last.

    Raises:
        UserError: there are fewer layers than stages, or `pipeline_split` doesn't fit.
    """
    count = num_stages(config)
    if config.pipeline_split is not None:
        sizes: Sequence[int] = config.pipeline_split
        if len(sizes) != count or sum(sizes) != model.num_layers:
            raise UserError(
                f"parallel.pipeline_split: needs {count} numbers (one a stage) that sum to the "
                f"{model.num_layers} layers, got {len(sizes)} that sum to {sum(sizes)}"
            )
    elif model.num_layers < count:
        raise UserError(
            f"model.num_layers: {model.num_layers} layers are fewer than the pipeline's {count} "
            f"stages: lower parallel.pipeline or parallel.stages_per_rank"
        )
    else:
        described = describe(model)
        head = described.head_flops_per_token()
        costs = described.layer_flops_per_token(seq_len)
        sizes = _balanced(costs, count, _EMBEDDING_SHARE * head, head)
    starts = [sum(sizes[:i]) for i in range(count)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _balanced(costs: Sequence[float], count: int, first: float, last: float) -> list[int]:
    """Layers of each stage that make the costliest one cheapest; of equals, the evenest.

    At least one layer a stage: an empty one would only pass data on.

    Args:
        costs: of the layers.
        count: of the stages.
        first: what the first stage costs besides.
        last: what the last stage costs besides.
    """
    before = list(itertools.accumulate(costs, initial=0))

    @cache
    def best(stage: int, start: int) -> tuple[tuple[float, float], tuple[int, ...]]:
        extra = (first if stage == 0 else 0) + (last if stage == count - 1 else 0)
        if stage == count - 1:
            cost = before[-1] - before[start] + extra
            return (cost, cost * cost), (len(costs) - start,)
        options = []
        for end in range(start + 1, len(costs) - (count - 1 - stage) + 1):
            cost = before[end] - before[start] + extra
            (worst, squares), rest = best(stage + 1, end)
            options.append(((max(cost, worst), squares + cost * cost), (end - start, *rest)))
        return min(options)

    return list(best(0, 0)[1])


def schedule_problem(config: ParallelConfig, num_micro_batches: int) -> str | None:
    """Why a schedule can't run so many micro-batches a step, or None."""
    name, ranks, stages = config.pipeline_schedule, config.pipeline, num_stages(config)
    traits = SCHEDULES[name]
    if traits.fills_all_stages and num_micro_batches < stages:
        return f"{name} with {stages} stages needs at least {stages} micro-batches a step"
    if traits.has_several_stages and not traits.is_v:
        rounds = max(1, num_micro_batches // ranks)
        if num_micro_batches % rounds:
            return (
                f"{name} with {ranks} pipeline ranks needs a multiple of {rounds} micro-batches "
                "a step"
            )
    return None
