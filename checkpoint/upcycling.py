"""Reads a dense model's weights into one with experts, in any layout.

Shape letters: E experts, F and D the sizes of an expert's matrix; FSDP, expert and tensor
parallelism may have left a process only a part of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, empty
from torch.distributed.tensor.placement_types import Placement

from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, describe
from triax.models.upcycling import originals
from triax.parallel.flat_shards import local_tensor


@torch.no_grad()
def read_upcycled(
    read: Callable[[Mapping[str, Tensor]], Any],
    weights: Mapping[str, Tensor],
    model: ModelConfig,
    noise: float,
) -> None:
    """Fill a model's weights from a dense one's, each expert with a copy of its layer's matrices.

    Args:
        read: fills tensors by name from the dense model's checkpoint, and reads of each only what
            this process holds; collective. Names begin with `model.`.
        weights: this process's, likewise, with the values that a new model begins with.
        model: what they are the weights of.
        noise: these values times so much are added to the copies of experts. They are the same in
            every layout, and so is what comes out, to the last bit.
    """
    table, names = describe(model).parameters, originals(model)
    targets, matrices = {}, {}
    for name, weight in weights.items():
        own = name.removeprefix("model.")
        if own not in names:
            continue  # it begins as in a new model
        if table[own].role in EXPERTS:
            weight = matrices[name] = _matrix_of(weight)
        targets[f"model.{names[own]}"] = weight
    read(targets)
    for name, matrix_FD in matrices.items():
        # In two steps: fused, they would be rounded otherwise in some layouts.
        local_tensor(weights[name]).mul_(noise).add_(local_tensor(matrix_FD))


def _matrix_of(weight_EFD: Tensor) -> Tensor:
    """Room for one matrix, divided as those of all experts are."""
    shape = weight_EFD.shape[1:]
    if not isinstance(weight_EFD, DTensor):
        return weight_EFD.new_empty(shape)
    placements: list[Placement] = [
        Shard(placement.dim - 1)
        if isinstance(placement, Shard) and placement.dim > 0
        else Replicate()
        for placement in weight_EFD.placements
    ]
    mesh, dtype = weight_EFD.device_mesh, weight_EFD.dtype
    return empty(*shape, dtype=dtype, device_mesh=mesh, placements=placements)
