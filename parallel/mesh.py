"""The layout as torch's device mesh."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from triax.parallel.layout import AXES, Layout


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """A mesh with an axis for every one of `AXES`; needs the default process group."""
    return init_device_mesh(device_type, layout.sizes, mesh_dim_names=AXES)


def zero_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of the mesh that ZeRO works on: (shard) alone, or (replicate, shard)."""
    axes = ("shard",) if mesh["replicate"].size() == 1 else ("replicate", "shard")
    return mesh[axes]
