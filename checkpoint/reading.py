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
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.layers.transformer import Transformer

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
    _refuse_another_model(folder, _differences(_tensor_metadata(metadata), shapes))
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), metadata, is_coordinator=False)
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    try:
        reader.read_data(planner.finish_plan(plan), planner).wait()
    except Exception as error:  # a malformed file raises almost anything
        raise UserError(f"{folder}: its shards cannot be read: {error}") from error


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
    _refuse_another_model(folder, differences)


def check_model(folder: Path, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's tensors by their names in the checkpoint, which holds just those.

    Raises:
        UserError: it is a checkpoint of another model, or its metadata can't be read.
    """
    num_saved = len(_tensor_metadata(ShardReader(folder).read_metadata()))
    if config.num_layers > num_saved:  # to describe so many may take for ever
        differences = [f"  {config.num_layers} layers here, {num_saved} tensors in the checkpoint"]
        _refuse_another_model(folder, differences)
    table = describe(config).parameters
    shapes = {f"model.{name}": row.shape for name, row in table.items()}
    check_weights(folder, shapes, prefix="model.")
    return shapes


def load_model(folder: Path, config: ModelConfig) -> Transformer:
    """The checkpoint's weights as a plain model on the CPU, in fp32.

    Raises:
        UserError: it is a checkpoint of another model or optimizer, or its shards cannot be read.
    """
    weights = {name: torch.empty(shape) for name, shape in check_model(folder, config).items()}
    read_into(folder, weights)
    return model_of(
        config, {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    )


def model_of(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Transformer:
    """A plain model that takes over the given weights; with tied embeddings they lack the head."""
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(dict(weights), strict=not config.tie_embeddings, assign=True)
    model.tie()
    return model


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


def _refuse_another_model(folder: Path, differences: list[str]) -> None:
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
