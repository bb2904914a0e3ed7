"""A process's part of one pipeline stage. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from triax.models.config import ModelConfig
from triax.models.description import Parameter, describe
from triax.parallel.config import ParallelConfig
from triax.parallel.stages import num_stages, split_layers
from triax.planning.elements import StageElements, depth_of, stage_elements
from triax.planning.setup import Setup


@dataclass(frozen=True)
class StagePart:
    """What a process holds of a stage.

    Attributes:
        stage: its number, in the order of the layers.
        layers: the blocks.
        is_first, is_last: whether it has the embedding, and norm and head.
        elements: of its weights.
        sends_on, sends_back: whether the next and the former stage are other processes'.
    """

    stage: int
    layers: range
    is_first: bool
    is_last: bool
    elements: StageElements
    sends_on: bool
    sends_back: bool

    def parameters(self, model: ModelConfig) -> tuple[list[Parameter], list[Parameter]]:
        """Those that the optimizer updates here, and a head that follows another stage's
        embedding."""
        updated, followers = [], []
        num_layers = len(describe(model).architecture.layers)
        for row in describe(model).table:
            is_here = (
                row.layer in self.layers
                or (row.layer < 0 and self.is_first)
                or (row.layer >= num_layers and self.is_last)
            )
            if is_here and row.tied_to is None:
                updated.append(row)
            elif is_here and not self.is_first:
                followers.append(row)
        return updated, followers


def parts_of(setup: Setup, pipeline_rank: int, shard_rank: int = 0) -> list[StagePart]:
    """A process's stages, as the run would divide the layers.

    Raises:
        UserError: the layers can't be divided so.
    """
    parallel, layout = setup.parallel, setup.layout
    depth = depth_of(setup.model, parallel.tensor, layout.shard, shard_rank)
    count = num_stages(parallel)
    splits = _splits(setup.model, parallel, setup.seq_len)
    here = setup.stages_of(pipeline_rank)
    return [
        StagePart(
            stage,
            splits[stage],
            stage == 0,
            stage == count - 1,
            stage_elements(
                setup.model,
                depth,
                splits[stage],
                is_first=stage == 0,
                is_last=stage == count - 1,
                is_alone=parallel.pipeline == 1,
            ),
            sends_on=stage < count - 1 and stage + 1 not in here,
            sends_back=stage > 0 and stage - 1 not in here,
        )
        for stage in here
    ]


def _splits(model: ModelConfig, parallel: ParallelConfig, seq_len: int) -> tuple[range, ...]:
    if parallel.pipeline == 1:
        return (range(model.num_layers),)
    shape = ParallelConfig.model_construct(
        pipeline=parallel.pipeline,
        pipeline_schedule=parallel.pipeline_schedule,
        stages_per_rank=parallel.stages_per_rank,
        pipeline_split=parallel.pipeline_split,
    )
    return _kept_splits(model, shape, seq_len)


@lru_cache(maxsize=1024)
def _kept_splits(model: ModelConfig, shape: ParallelConfig, seq_len: int) -> tuple[range, ...]:
    """`split_layers`, kept: a search asks for the same ones again and again."""
    return tuple(split_layers(model, shape, seq_len))
