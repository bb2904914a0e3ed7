"""Where each process stands on the axes of parallelism, by arithmetic alone. Imports no torch.

All that is worked out of the number of processes and the degrees of parallelism stands here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from triax.common.errors import UserError
from triax.parallel.config import ParallelConfig

AXES = ("pipeline", "replicate", "shard", "context", "tensor")
"""Outermost first: neighbours on the last axis are neighbouring processes."""
DATA_AXES = ("replicate", "shard")
"""Over which the samples of a step are divided; on the other axes ranks read the same ones."""


@dataclass(frozen=True)
class Layout:
    """The size of every axis of the mesh."""

    pipeline: int
    replicate: int
    shard: int
    context: int
    tensor: int

    @staticmethod
    def of(config: ParallelConfig, world_size: int) -> Layout:
        """The layout of so many processes. ZeRO stage 0 replicates over all of data parallelism.

        Raises:
            UserError: the degrees don't multiply to the number of processes.
        """
        model_parallel = _model_parallel(config)
        data_parallel = Layout.data_parallel_of(config, world_size)
        if data_parallel is None:
            raise UserError(
                f"{_degrees(config)} = "
                f"{model_parallel} does not divide the {world_size} processes of this job: "
                f"start a multiple of {model_parallel} processes or change the degrees"
            )
        if data_parallel % config.replicate:
            raise UserError(
                f"parallel.replicate {config.replicate} does not divide the {data_parallel} "
                f"data-parallel processes of this job: choose a divisor of {data_parallel}"
            )
        replicate = data_parallel if config.zero_stage == 0 else config.replicate
        num_shares = data_parallel if config.zero_stage == 0 else data_parallel // replicate
        num_shares *= config.context
        if num_shares % config.expert:
            raise UserError(
                f"parallel.expert {config.expert} does not divide the {num_shares} processes that "
                f"share a replica's tokens: choose a divisor of {num_shares}"
            )
        shard = data_parallel // replicate
        return Layout(config.pipeline, replicate, shard, config.context, config.tensor)

    @staticmethod
    def unit_of(config: ParallelConfig) -> int:
        """What the number of processes must be a multiple of."""
        return _model_parallel(config) * config.replicate

    @staticmethod
    def data_parallel_of(config: ParallelConfig, world_size: int | None) -> int | None:
        """Over how many ranks samples are divided, whether or not `replicate` divides those.

        None where the number of processes is unknown, or isn't whole copies of the model.
        """
        if not world_size or world_size % _model_parallel(config):
            return None
        return world_size // _model_parallel(config)

    @property
    def sizes(self) -> tuple[int, ...]:
        """One size an axis, in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return math.prod(self.sizes)

    @property
    def data_parallel(self) -> int:
        """Over how many ranks the samples of a step are divided."""
        return self.replicate * self.shard

    @property
    def num_parts(self) -> int:
        """Over how many ranks the weights and their state are divided, at the most."""
        return self.pipeline * self.shard * self.context * self.tensor

    def num_micro_batches(self, global_batch_size: int, micro_batch_size: int) -> int:
        """How many of a step's micro-batches each rank has."""
        return global_batch_size // (micro_batch_size * self.data_parallel)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a process stands on every axis."""
        found = {}
        for axis, size in zip(reversed(AXES), reversed(self.sizes), strict=True):
            rank, found[axis] = divmod(rank, size)
        return found

    def data_rank(self, rank: int) -> int:
        """Which of the `data_parallel` parts of the samples a process reads."""
        at = self.coordinates(rank)
        return at["replicate"] * self.shard + at["shard"]

    def groups(self, *axes: str) -> list[list[int]]:
        """The ranks that differ on these axes alone, group by group, by their first ranks."""
        found: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for rank in range(self.world_size):
            at = self.coordinates(rank)
            found[tuple(at[axis] for axis in AXES if axis not in axes)].append(rank)
        return list(found.values())


def _model_parallel(config: ParallelConfig) -> int:
    """How many processes work on one sample."""
    return config.tensor * config.context * config.pipeline


def _degrees(config: ParallelConfig) -> str:
    """Their product in words; degrees that are always said, and others where they aren't 1."""
    axes = ("tensor", "context", "pipeline") if config.context > 1 else ("tensor", "pipeline")
    return " x ".join(f"parallel.{axis} {getattr(config, axis)}" for axis in axes)
