"""The one ordered function that spreads a model over the mesh."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh

from triax.models.config import ModelConfig
from triax.models.description import Description
from triax.models.layers.block import Block
from triax.models.layers.masks import BLOCK_TOKENS, DENSE_TOKENS, block_mask, reach
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.context.attention import divide_attention
from triax.parallel.dtypes import DTYPES
from triax.parallel.experts import spread_all_experts
from triax.parallel.float8 import use_float8
from triax.parallel.frozen import freeze
from triax.parallel.fused_projections import project_as_one
from triax.parallel.mesh import build_expert_mesh, build_weight_mesh, expert_zero_mesh, zero_mesh
from triax.parallel.pipeline import make_part
from triax.parallel.recompute import checkpoint_and_compile, compile_loss
from triax.parallel.schedule import Part
from triax.parallel.stages import stages_of_rank
from triax.parallel.tensor import overlap_messages, split_tensors
from triax.parallel.zero import shard


def masks_in_blocks(
    model: Description, config: ParallelConfig, device_type: str, seq_len: int
) -> bool:
    """Whether FlexAttention masks: uncompiled it would be slower than a dense mask, its kernels
    take no heads of less than 16 dimensions, and one block has nothing to leave out."""
    dims = (layer.attention.head_dim for layer in model.architecture.layers)
    can = config.compile and device_type == "cuda" and min(dims) >= 16
    return can and seq_len > BLOCK_TOKENS


def multiplies_jointly(config: ParallelConfig) -> bool:
    """Whether queries, keys and values are one product: in compiled blocks that have whole weights,
    if a copy of those weights may be kept for the backward pass, or is made again there."""
    keeps_weights_anyway = config.zero_stage < 3 and config.pipeline == 1
    may_copy = keeps_weights_anyway or config.activation_checkpointing != "none"
    return config.compile and config.tensor == 1 and may_copy


def parallelize(
    model: ModelConfig,
    mesh: DeviceMesh,
    config: ParallelConfig,
    precision: PrecisionConfig,
    seq_len: int,
) -> list[Part]:
    """This process's parts of the model, on the meta device: pipeline stages, then in each fp8,
    tensor and sequence parallelism, masks, joint products, activation checkpointing, compile per
    block and of the loss, ZeRO.

    Parameters keep the names that they have in the whole model.

    Args:
        model: the transformer's shape.
        mesh: from `build_mesh`.
        config: the `[parallel]` section.
        precision: the `[precision]` section.
        seq_len: tokens of a sequence, for balancing the stages.
    """
    context_mesh, mesh = mesh["context"], build_weight_mesh(mesh, config.zero_stage)
    if config.async_tensor:
        overlap_messages(mesh["tensor"])
    expert_mesh = build_expert_mesh(mesh, config.expert) if config.expert > 1 else None
    stages = stages_of_rank(mesh["pipeline"].get_local_rank(), config)
    parts = [make_part(model, config, stage, seq_len) for stage in stages]
    for part in parts:
        if precision.compute == "fp8":
            use_float8(part.module, precision.fp8_recipe)
        if config.tensor > 1:
            split_tensors(part.module, mesh["tensor"], config.sequence_parallel)
            part.module.tie()  # or ZeRO would gather and reduce the tied weight twice
        spread_all_experts(part.module, mesh, expert_mesh, config)
        freeze(part.module, DTYPES[precision.compute])
        if masks_in_blocks(part.module.description, config, mesh.device_type, seq_len):
            part.module.make_mask = block_mask
        elif seq_len > DENSE_TOKENS[mesh.device_type]:
            part.module.make_mask = reach
        if config.context > 1:
            divide_attention(part.module, context_mesh, config.context_method, tensor=config.tensor)
        for block in part.module.blocks.values():
            assert isinstance(block, Block)
            if model.lora is None and multiplies_jointly(config):
                block.attention.project = project_as_one
            checkpoint_and_compile(block, config)
        if config.compile and part.module.head is not None:
            compile_loss(part.module.head)
        by_expert = None if expert_mesh is None else expert_zero_mesh(expert_mesh)
        shard(part.module, zero_mesh(mesh), config.zero_stage, precision.compute, by_expert)
    return parts
