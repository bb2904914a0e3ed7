"""The layout as torch's device mesh."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from triax.parallel.layout import AXES, DATA_AXES, Layout


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """A mesh with an axis for every one of `AXES`; needs the default process group."""
    return init_device_mesh(device_type, layout.sizes, mesh_dim_names=AXES)


def build_weight_mesh(mesh: DeviceMesh, zero_stage: int) -> DeviceMesh:
    """The same processes for weights: those that divide a sequence hold no weights of their own.

    They shard with the others, or at ZeRO stage 0, where none do, are replicas.

    Args:
        mesh: from `build_mesh`; is returned where no sequence is divided.
    """
    sizes = dict(zip(AXES, mesh.shape, strict=True))
    context = sizes.pop("context")
    if context == 1:
        return mesh
    sizes["shard" if zero_stage else "replicate"] *= context
    return init_device_mesh(mesh.device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def zero_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of a weight mesh that ZeRO works on: (shard) alone, or (replicate, shard)."""
    axes = ("shard",) if mesh["replicate"].size() == 1 else ("replicate", "shard")
    return mesh[axes]


def build_expert_mesh(mesh: DeviceMesh, expert: int) -> DeviceMesh:
    """The same processes for experts' weights: some data-parallel neighbours hold other experts.

    They are those that shard, or at ZeRO stage 0, where none do, replicas.

    Args:
        mesh: from `build_weight_mesh`.
        expert: over how many processes the experts of a layer are divided.
    """
    axes = ("pipeline", "replicate", "shard", "tensor")
    sizes = {axis: mesh[axis].size() for axis in axes}
    replicate, shard = sizes["replicate"], sizes["shard"]
    if shard == 1:
        replicate, shard = replicate // expert, expert
    return init_device_mesh(
        mesh.device_type,
        (sizes["pipeline"], replicate, shard // expert, expert, sizes["tensor"]),
        mesh_dim_names=("pipeline", "replicate", "expert_shard", "expert", "tensor"),
    )


def expert_zero_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of an expert mesh that ZeRO works on."""
    axes = ("expert_shard",) if mesh["replicate"].size() == 1 else ("replicate", "expert_shard")
    return mesh[axes]


def num_copies(parameter: Tensor, mesh: DeviceMesh) -> int:
    """How many processes of a pipeline stage hold the same elements of a parameter.

    Replicas do, and on the tensor axis those that hold a weight whole.
    """
    if not isinstance(parameter, DTensor):
        return mesh["replicate"].size()  # one process holds the whole depth or stage
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


READER_AXES = tuple(axis for axis in AXES if axis not in DATA_AXES)
"""The processes that differ on these alone read the same samples."""


def num_readers(mesh: DeviceMesh) -> int:
    """How many processes read the same samples."""
    return math.prod(mesh[axis].size() for axis in READER_AXES)
