"""The one ordered function that spreads a model over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from triax.parallel.config import ParallelConfig
from triax.parallel.mesh import zero_mesh
from triax.parallel.zero import shard


def spread(model: nn.Module, mesh: DeviceMesh, config: ParallelConfig, compute: str) -> None:
    """Spread the model, in place: activation checkpointing, compile per block, ZeRO.

    Parameters keep their names. Pipeline and tensor parallelism will come before these.

    Args:
        model: the transformer on the meta device.
        mesh: from `build_mesh`.
        config: the `[parallel]` section.
        compute: `precision.compute`.
    """
    assert isinstance(model.blocks, nn.ModuleDict)
    for block in model.blocks.values():
        _wrap_forward(block, config)
    shard(model, zero_mesh(mesh), config.zero_stage, compute)


def _wrap_forward(block: nn.Module, config: ParallelConfig) -> None:
    """Wrap the block's forward only: its name, its parameters' names and its hooks stay."""
    forward: Callable[..., Any] = block.forward
    if config.activation_checkpointing == "full":
        forward = functools.partial(
            checkpoint, forward, use_reentrant=False, preserve_rng_state=False
        )
    if config.compile:
        forward = torch.compile(forward)
    block.forward = forward
