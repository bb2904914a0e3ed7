"""Where each process stands on the axes of parallelism, by arithmetic alone. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from triax.common.errors import UserError
from triax.parallel.config import ParallelConfig

AXES = ("pipeline", "replicate", "shard", "context", "tensor")
"""Outermost first: neighbours on the last axis are neighbouring processes."""


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
        model_parallel = config.tensor * config.pipeline
        data_parallel, remainder = divmod(world_size, model_parallel)
        if remainder or data_parallel == 0:
            raise UserError(
                f"parallel.tensor {config.tensor} x parallel.pipeline {config.pipeline} = "
                f"{model_parallel} does not divide the {world_size} processes of this job: "
                f"start a multiple of {model_parallel} processes or change the degrees"
            )
        if data_parallel % config.replicate:
            raise UserError(
                f"parallel.replicate {config.replicate} does not divide the {data_parallel} "
                f"data-parallel processes of this job: choose a divisor of {data_parallel}"
            )
        replicate = data_parallel if config.zero_stage == 0 else config.replicate
        return Layout(config.pipeline, replicate, data_parallel // replicate, 1, config.tensor)

    @property
    def sizes(self) -> tuple[int, ...]:
        """One size an axis, in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def data_parallel(self) -> int:
        """Over how many ranks the samples of a step are divided."""
        return self.replicate * self.shard

    def data_rank(self, rank: int) -> int:
        """Which of the `data_parallel` parts of the samples a process reads."""
        return rank // (self.context * self.tensor) % self.data_parallel
