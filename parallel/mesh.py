"""The layout as torch's device mesh."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from triax.parallel.layout import AXES, Layout


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """A mesh with an axis for every one of `AXES`; needs the default process group."""
    return init_device_mesh(device_type, layout.sizes, mesh_dim_names=AXES)


def zero_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of the mesh that ZeRO works on: (shard) alone, or (replicate, shard)."""
    axes = ("shard",) if mesh["replicate"].size() == 1 else ("replicate", "shard")
    return mesh[axes]


def num_copies(parameter: Tensor, mesh: DeviceMesh) -> int:
    """How many processes of a pipeline stage hold the same elements of a parameter.

    Replicas do, and on the tensor axis those that hold a weight whole.
    """
    copies = mesh["replicate"].size()
    if not isinstance(parameter, DTensor):
        return copies  # one process holds the whole depth or stage
    names = parameter.device_mesh.mesh_dim_names or ()
    if "tensor" in names and parameter.placements[names.index("tensor")].is_replicate():
        copies *= mesh["tensor"].size()
    return copies


def num_readers(mesh: DeviceMesh) -> int:
    """How many processes read the same samples."""
    return mesh["tensor"].size() * mesh["pipeline"].size()
