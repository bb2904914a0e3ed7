"""A process's part of one pipeline stage. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from triax.models.config import ModelConfig
from triax.models.description import Parameter, describe
from triax.parallel.config import ParallelConfig
from triax.parallel.stages import num_stages, split_layers, stages_of_rank
from triax.planning.elements import Spread, StageElements, depth_of, stage_elements
from triax.planning.setup import Setup


@dataclass(frozen=True)
class StagePart:
    """What a process holds of a stage.

    Attributes:
        stage: its number, in the order of the layers.
        layers: the blocks.
        is_first, is_last: whether it has the embedding, and norm and head.
        elements: of its weights, those that are trained.
        frozen: of those beside adapters.
        sends_on, sends_back: whether the next and the former stage are other processes'.
    """

    stage: int
    layers: range
    is_first: bool
    is_last: bool
    elements: StageElements
    frozen: StageElements
    sends_on: bool
    sends_back: bool

    def parameters(self, model: ModelConfig) -> tuple[Sequence[Parameter], Sequence[Parameter]]:
        """Those that the optimizer updates here, and a head that follows another stage's
        embedding."""
        return _parameters(model, self.layers, self.is_first, self.is_last)


@lru_cache(maxsize=1 << 12)
def _parameters(
    model: ModelConfig, layers: range, is_first: bool, is_last: bool
) -> tuple[Sequence[Parameter], Sequence[Parameter]]:
    updated, followers = [], []
    num_layers = len(describe(model).architecture.layers)
    for row in (each for each in describe(model).table if each.is_trained):
        is_here = (
            row.layer in layers
            or (row.layer < 0 and is_first)
            or (row.layer >= num_layers and is_last)
        )
        if is_here and row.tied_to is None:
            updated.append(row)
        elif is_here and not is_first:
            followers.append(row)
    return updated, followers


def parts_of(setup: Setup, pipeline_rank: int, shard_rank: int = 0) -> tuple[StagePart, ...]:
    """A process's stages, as the run would divide the layers.

    Raises:
        UserError: the layers can't be divided so.
    """
    parallel = setup.parallel
    shape = _Shape(
        setup.model,
        setup.seq_len,
        parallel.pipeline,
        num_stages(parallel),
        parallel.pipeline_split,
        setup.spread._replace(shard_rank=shard_rank),
    )
    here = _stages_of(
        pipeline_rank, parallel.pipeline, parallel.pipeline_schedule, shape.num_stages
    )
    return _parts(shape, here)


@lru_cache(maxsize=1 << 14)
def _stages_of(rank: int, pipeline: int, schedule: Any, count: int) -> tuple[int, ...]:
    shape = ParallelConfig.model_construct(
        pipeline=pipeline, pipeline_schedule=schedule, stages_per_rank=count // pipeline
    )
    return tuple(stages_of_rank(rank, shape))


def heaviest_ranks(setup: Setup) -> tuple[int, ...]:
    """The ranks of the pipeline among which are the slowest and the fullest: the first, which has
    the most in flight, the next, those of most layers, and the one with the head.

    Raises:
        UserError: the layers can't be divided so.
    """
    parallel = setup.parallel
    shape = (parallel.pipeline, parallel.pipeline_schedule, num_stages(parallel))
    return _heaviest_ranks(setup.model, setup.seq_len, parallel.pipeline_split, *shape)


@lru_cache(maxsize=1024)
def _heaviest_ranks(
    model: ModelConfig,
    seq_len: int,
    by_hand: tuple[int, ...] | None,
    pipeline: int,
    schedule: Any,
    count: int,
) -> tuple[int, ...]:
    if pipeline == 1:
        return (0,)
    splits = _kept_splits(model, count, by_hand, seq_len)
    sizes = [0] * pipeline
    for rank in range(pipeline):
        for stage in _stages_of(rank, pipeline, schedule, count):
            sizes[rank] += len(splits[stage])
    with_head = next(
        rank for rank in range(pipeline) if count - 1 in _stages_of(rank, pipeline, schedule, count)
    )
    return tuple(sorted({0, 1, sizes.index(max(sizes)), with_head}))


class _Shape(NamedTuple):
    """What stages depend on."""

    model: ModelConfig
    seq_len: int
    pipeline: int
    num_stages: int
    by_hand: tuple[int, ...] | None
    spread: Spread


@lru_cache(maxsize=1 << 14)
def _parts(shape: _Shape, here: tuple[int, ...]) -> tuple[StagePart, ...]:
    count = shape.num_stages
    splits = _kept_splits(shape.model, count, shape.by_hand, shape.seq_len)

    def elements(stage: int, *, is_trained: bool) -> StageElements:
        return stage_elements(
            shape.model,
            depth_of(shape.model, shape.spread, is_trained=is_trained),
            splits[stage],
            is_first=stage == 0,
            is_last=stage == count - 1,
            is_alone=shape.pipeline == 1,
        )

    return tuple(
        StagePart(
            stage,
            splits[stage],
            stage == 0,
            stage == count - 1,
            elements(stage, is_trained=True),
            elements(stage, is_trained=False),
            sends_on=stage < count - 1 and stage + 1 not in here,
            sends_back=stage > 0 and stage - 1 not in here,
        )
        for stage in here
    )


@lru_cache(maxsize=1024)
def _kept_splits(
    model: ModelConfig, count: int, by_hand: tuple[int, ...] | None, seq_len: int
) -> tuple[range, ...]:
    """`split_layers`, kept: it depends on the number of stages only, whatever the schedule."""
    if count == 1:
        return (range(model.num_layers),)
    shape = ParallelConfig.model_construct(
        pipeline=count, pipeline_schedule="gpipe", pipeline_split=by_hand
    )
    return tuple(split_layers(model, shape, seq_len))
