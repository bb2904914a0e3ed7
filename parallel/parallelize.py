"""The one ordered function that spreads a model over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from triax.models.config import ModelConfig
from triax.models.description import Description
from triax.models.layers.block import Block
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.head import Head
from triax.models.layers.loss import CHUNK_TOKENS, chunk_gradient, chunk_statistics
from triax.models.layers.masks import BLOCK_TOKENS, block_mask
from triax.models.layers.router import choosing_once
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.experts import spread_all_experts
from triax.parallel.float8 import use_float8
from triax.parallel.fused_projections import project_as_one
from triax.parallel.mesh import build_expert_mesh, expert_zero_mesh, zero_mesh
from triax.parallel.pipeline import make_part
from triax.parallel.schedule import Part
from triax.parallel.stages import stages_of_rank
from triax.parallel.tensor import overlap_messages, split_tensors
from triax.parallel.zero import shard

_EXPENSIVE = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.all_to_all_single.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.aten.topk.default,
)
"""What selective checkpointing keeps: matrix products, attention, what came from peers, and which
experts were chosen."""


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
        if masks_in_blocks(part.module.description, config, mesh.device_type, seq_len):
            part.module.make_mask = block_mask
        for block in part.module.blocks.values():
            assert isinstance(block, Block)
            if multiplies_jointly(config):
                block.attention.project = project_as_one
            _checkpoint_and_compile(block, config)
        if config.compile and part.module.head is not None:
            compile_loss(part.module.head)
        by_expert = None if expert_mesh is None else expert_zero_mesh(expert_mesh)
        shard(part.module, zero_mesh(mesh), config.zero_stage, precision.compute, by_expert)
    return parts


def _checkpoint_and_compile(block: Block, config: ParallelConfig) -> None:
    """The compiler decides with the policy what selective checkpointing keeps; computing all again
    is left out of its graph, where it fails under tensor parallelism.

    Of a block with experts attention is compiled: how many rows an expert has is data.
    """
    kind = config.activation_checkpointing
    if block.has_experts:
        if config.compile:
            block.attention.forward = torch.compile(block.attention.forward)  # type: ignore[method-assign]
        checkpoint_activations(block, kind)
        return
    if kind == "selective":
        checkpoint_activations(block, kind)
    if config.compile:
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
    if kind == "full":
        checkpoint_activations(block, kind)


def checkpoint_activations(block: nn.Module, what: str) -> None:
    """Compute (part of) the block's activations again in the backward pass (Chen et al. 2016).

    Only the forward function is wrapped: the block's parameters' names and its hooks stay.
    """
    if what == "none":
        return
    forward: Callable[..., Any] = block.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if what == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    elif isinstance(block, Block) and isinstance(block.mlp, MixtureOfExperts):
        options["context_fn"] = functools.partial(choosing_once, block.mlp.router)
    block.forward = functools.partial(checkpoint, forward, **options)


def compile_loss(head: Head) -> None:
    """Compile what the loss does with a chunk's logits; sums over processes stay outside.

    Compiled, no fp32 logits exist, so a chunk may be larger. It should be: each further chunk reads
    and writes an fp32 gradient of the head, which a single chunk does without.
    """
    head.options = replace(
        head.options,
        chunk_tokens=16 * CHUNK_TOKENS,
        statistics=torch.compile(chunk_statistics),
        gradient=torch.compile(chunk_gradient),
    )


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    keep = operation in _EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
