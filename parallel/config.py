"""The `[parallel]` and `[precision]` sections: how a model is spread over processes, and what it
is computed in. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from triax.common.paths import PathField
from triax.common.quantities import Duration, PatienceField, Unit
from triax.common.section import LARGEST_FP32, Section
from triax.parallel.context.methods import MethodName

AttentionKernel = Literal["cudnn", "flash", "efficient", "math"]


class ParallelConfig(Section):
    """Degrees of parallelism. Data parallelism takes the processes that the others leave."""

    engine: Literal["native", "deepspeed"] = "native"
    """PyTorch's own parallelism, or DeepSpeed with megatron-core (the `deepspeed` extra)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """0 replicates all; 1 shards optimizer state; 2 gradients too; 3 parameters too."""
    replicate: PositiveInt = 1
    """Hybrid sharding: this many replicas, each of which shards over its own processes."""
    tensor: PositiveInt = 1
    sequence_parallel: bool = True
    """With `tensor` > 1: divide the tokens between the split layers too."""
    async_tensor: bool = False
    """Overlap tensor parallelism's messages with its matrix products (CUDA, with `compile`)."""
    context: PositiveInt = 1
    """Divide the tokens of each sequence over so many processes."""
    context_method: MethodName = "auto"
    """How attention reaches the tokens elsewhere: all keys and values come here; they pass from
    process to process; or each process attends with some heads. `docs/context.md` has the rule."""
    expert: PositiveInt = 1
    """Divide the experts of each layer over so many of the processes that share a replica's
    tokens."""
    pipeline: PositiveInt = 1
    pipeline_schedule: Literal[
        "gpipe", "1f1b", "interleaved-1f1b",
        "interleaved-zero-bubble", "zbv-zero-bubble", "dualpipe-v",
    ] = "1f1b"  # fmt: skip
    stages_per_rank: PositiveInt = 2
    """Pipeline stages that one process holds under the interleaved schedules."""
    pipeline_split: tuple[PositiveInt, ...] | None = None
    """Layers of each stage; by cost unless given."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing; all but matrix products and attention; all
    of a block."""
    compile: bool = False
    """Compile each transformer block, and the loss."""
    attention: Annotated[tuple[AttentionKernel, ...], Field(min_length=1)] = (
        "cudnn", "flash", "efficient", "math",
    )  # fmt: skip
    """Kernels for attention without a mask in the order of preference, on CUDA: the first that
    takes the shapes is used, `math` where none does. Document masks have FlexAttention with
    `compile`, and slow kernels without."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """`deepspeed` only: keep optimizer state, and weights at stage 3, in the machine's memory; with
    `nvme` optimizer state on a drive."""
    offload_path: PathField | None = None
    """With `nvme`: a folder on a local drive of every machine."""
    timeout: PatienceField = Duration(600, Unit.SECONDS)
    """How long a collective may take before the job is ended."""


class PrecisionConfig(Section):
    """`[precision]`: what matrices are multiplied in; the optimizer updates fp32 weights."""

    compute: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """auto: bf16 where the devices of all processes multiply in it, else fp32; a run resolves it
    as it begins, and stays with that. fp8: the blocks' linear layers; all else as in bf16."""
    fp8_recipe: Literal["tensorwise", "rowwise"] = "tensorwise"
    """One scale a matrix, or one a row: slower, and closer to bf16 where outliers are."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """What reduced gradients are kept in until the update. From `parallel.zero_stage` 2 on, and
    on a single data-parallel process without `parallel.tensor`, they are summed over
    micro-batches in it too."""
    initial_loss_scale: float = Field(65536.0, ge=1, le=LARGEST_FP32)
    """fp16 only; halved at each overflow, doubled after `loss_scale_window` clean steps."""
    loss_scale_window: PositiveInt = 1000

    def resolved(self, *, has_bf16: bool) -> PrecisionConfig:
        """With what "auto" stands for on devices that multiply in bf16, or don't."""
        if self.compute != "auto":
            return self
        return self.model_copy(update={"compute": "bf16" if has_bf16 else "fp32"})
