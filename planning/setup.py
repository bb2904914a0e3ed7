"""What a plan is about: a model, how it is spread, and over how many devices. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from triax.models.config import ModelConfig
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.layout import Layout
from triax.planning.elements import Spread
from triax.training.config import BatchConfig, OptimizerConfig

COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
"""Of an activation and of a weight as products read it; fp8 casts its factors just before them."""


@dataclass(frozen=True)
class Setup:
    """The sections of a run that decide its memory and its speed, and where it would run."""

    model: ModelConfig
    parallel: ParallelConfig
    precision: PrecisionConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    seq_len: int
    world_size: int
    device: Literal["cuda", "cpu"] = "cuda"
    """Kernels differ: a CPU's norms keep more for the backward pass, and no update is compiled."""
    has_documents: bool = False
    """Whether tokens see their own document only, so that there is a mask."""
    passes_alone: int = 0
    """Forward passes without gradients that the objective takes each micro-batch through besides:
    one under DPO, which weighs answers by it (`training.objectives.dpo`)."""

    @cached_property
    def layout(self) -> Layout:
        """The size of every axis.

        Raises:
            UserError: the degrees don't multiply to the number of processes.
        """
        return Layout.of(self.parallel, self.world_size)

    @cached_property
    def weight_shards(self) -> int:
        """Processes over which ZeRO divides weights: those that divide a sequence are among them
        (`parallel.mesh.build_weight_mesh`)."""
        return 1 if self.parallel.zero_stage == 0 else self.layout.shard * self.layout.context

    @cached_property
    def weight_replicas(self) -> int:
        """Processes that hold the same shards."""
        layout = self.layout
        return layout.replicate * layout.shard * layout.context // self.weight_shards

    @cached_property
    def spread(self) -> Spread:
        """How a stage's weights are divided, on the first process of the shard axis."""
        return Spread(self.parallel.tensor, self.weight_shards, self.parallel.expert)

    @cached_property
    def num_micro_batches(self) -> int:
        """Forward passes of one data-parallel rank in a step."""
        batch = self.batch
        count = self.layout.num_micro_batches(batch.global_batch_size, batch.micro_batch_size)
        return max(1, count)

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one forward pass on one rank, before sequence parallelism divides them."""
        return self.batch.micro_batch_size * self.seq_len // self.layout.context

    @property
    def tokens_per_step(self) -> int:
        """Of the whole run's global batch."""
        return self.batch.global_batch_size * self.seq_len

    @property
    def compute_bytes(self) -> int:
        """Of an activation."""
        return COMPUTE_BYTES[self.precision.compute]

    @property
    def backward_products(self) -> int:
        """For each product of the forward pass: one for the gradient of its input, and one for that
        of the weight, if it isn't frozen beside adapters (whose own products are left out)."""
        return 2 if self.model.lora is None else 1

    @property
    def divides_tokens(self) -> bool:
        """Whether tokens are divided between the split layers (Korthikanti et al. 2022)."""
        return self.parallel.tensor > 1 and self.parallel.sequence_parallel

    @property
    def shards(self) -> bool:
        """Whether FSDP2 holds the weights; a single data-parallel process does without it.

        The rule is that of `parallel.zero.shard`.
        """
        is_alone = self.weight_shards * self.weight_replicas * self.parallel.tensor == 1
        has_copies = self.precision.compute != "fp32" and self.parallel.zero_stage == 3
        return not is_alone or has_copies
