"""What the backward pass computes again, and what is compiled, block by block and of the loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from triax.models.layers.attention_op import NAMESPACE
from triax.models.layers.block import Block
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.head import Head
from triax.models.layers.loss import CHUNK_TOKENS, chunk_gradient, chunk_statistics
from triax.models.layers.router import choosing_once
from triax.parallel.config import ParallelConfig

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


def checkpoint_and_compile(block: Block, config: ParallelConfig) -> None:
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
    keep = operation in _EXPENSIVE or getattr(operation, "namespace", None) == NAMESPACE
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
