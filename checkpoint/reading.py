"""Read tensors back, into any layout: each process reads only what its part needs.

Nothing here talks to other processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from triax.checkpoint.storage import ShardMap, ShardReader
from triax.common.errors import UserError

_NUM_SHOWN = 5


def read_tensors(folder: Path, *, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, whole and on the CPU, in their own dtypes.

    Names keep the prefix.

    Raises:
        UserError: the folder holds no shards that triax wrote, or they cannot be read.
    """
    saved = _tensor_metadata(ShardReader(folder).read_metadata())
    try:
        tensors = {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
            for name, tensor in saved.items()
            if name.startswith(prefix)
        }
    except RuntimeError as error:
        raise UserError(f"{folder}: its tensors don't fit into memory: {error}") from None
    read_into(folder, tensors)
    return tensors


@torch.no_grad()
def read_into(
    folder: Path, tensors: Mapping[str, torch.Tensor], shard_map: ShardMap | None = None
) -> None:
    """Fill tensors in place from a checkpoint, whatever layout it was saved in.

    The tensors may be plain or DTensors of any layout, on any device but meta; another dtype is
    cast to. They may be some of the checkpoint's tensors.

    Args:
        shard_map: what one process has read for all; None reads it here.

    Raises:
        UserError: a name is missing or a shape differs, or the shards cannot be read.
    """
    assert not any(tensor.is_meta for tensor in tensors.values())
    reader = ShardReader(folder)
    metadata = reader.read_metadata() if shard_map is None else reader.take_map(shard_map)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    refuse_another_model(folder, _differences(_tensor_metadata(metadata), shapes))
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), metadata, is_coordinator=False)
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    try:
        reader.read_data(planner.finish_plan(plan), planner).wait()
    except Exception as error:  # a malformed file raises almost anything
        raise UserError(f"{folder}: its shards cannot be read: {error}") from error


def count_tensors(folder: Path) -> int:
    """How many tensors a checkpoint holds.

    Raises:
        UserError: its metadata can't be read.
    """
    return len(_tensor_metadata(ShardReader(folder).read_metadata()))


def check_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, prefix: str) -> None:
    """Compare the names that start with `prefix` and their shapes with those that are expected.

    Raises:
        UserError: one is missing, left over or of another shape, or the metadata can't be read.
    """
    saved = _tensor_metadata(ShardReader(folder).read_metadata())
    differences = _differences(saved, shapes)
    differences += [
        f"  {name}: {tuple(tensor.size)} in the checkpoint, not here"
        for name, tensor in saved.items()
        if name.startswith(prefix) and name not in shapes
    ]
    refuse_another_model(folder, differences)


def _tensor_metadata(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    return {
        name: tensor
        for name, tensor in metadata.state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
    }


def _differences(
    saved: Mapping[str, TensorStorageMetadata], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    differences = []
    for name, shape in shapes.items():
        if name not in saved:
            differences.append(f"  {name}: {shape} here, not in the checkpoint")
        elif tuple(saved[name].size) != shape:
            differences.append(
                f"  {name}: {shape} here, {tuple(saved[name].size)} in the checkpoint"
            )
    return differences


def refuse_another_model(folder: Path, differences: list[str]) -> None:
    """Let through a checkpoint without any.

    Raises:
        UserError: there are some; it says which.
    """
    if differences:
        shown = "\n".join(differences[:_NUM_SHOWN])
        rest = len(differences) - _NUM_SHOWN
        more = f"\n  and {rest} more" if rest > 0 else ""
        is_optimizer = all(line.startswith("  optimizer.") for line in differences)
        what = "optimizer" if is_optimizer else "model"
        raise UserError(
            f"{folder}: a checkpoint of another {what}:\n{shown}{more}\n"
            f"Use the [{what}] section it was trained with, or another run.name to start anew."
        )
