"""The model that a checkpoint holds: all of it, or adapters beside the weights of another one.

A checkpoint of adapters is small. Its record names the checkpoint whose weights they stand beside,
its base, with a digest of that one's files: other weights would give another model, silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from triax.checkpoint.folders import CheckpointInfo, checkpoints_at, inspect, problems_of
from triax.checkpoint.manifest import Manifest, read_manifest
from triax.checkpoint.reading import (
    check_weights,
    count_tensors,
    read_into,
    refuse_another_model,
)
from triax.checkpoint.run_folder import recorded_table
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.layers.transformer import Transformer

_PREFIX = "model."


def base_record(base: CheckpointInfo) -> dict[str, str]:
    """What the record of adapters says of their base."""
    assert base.manifest is not None
    return {"path": str(base.path.absolute()), "digest": base.manifest.digest}


def base_of(checkpoint: Path, record: Mapping[str, Any], elsewhere: Path | None = None) -> Path:
    """The checkpoint whose weights a checkpoint's adapters stand beside.

    Args:
        record: the adapters'.
        elsewhere: a checkpoint that may be it, or a run with it, if it isn't where the record says.

    Raises:
        UserError: the record names none, or it is gone, or another one is there.
    """
    known = recorded_table(record, "base")
    named, digest = known.get("path"), known.get("digest")
    if not isinstance(named, str) or not isinstance(digest, str):
        raise UserError(f"{checkpoint}: holds adapters, and its record names no base")
    places = [Path(named)]
    if elsewhere is not None:
        with suppress(UserError):
            places += [info.path for info in checkpoints_at(elsewhere)]
    for place in places:
        manifest = inspect(place).manifest
        if manifest is not None and manifest.digest == digest:
            return place
    raise UserError(
        f"{checkpoint}: its adapters stand beside the weights of {named}, and "
        + " and ".join(map(_what_is_at, places))
        + ". Put that checkpoint back, as it was"
    )


def _what_is_at(place: Path) -> str:
    there = inspect(place).manifest is not None
    return f"{place} holds others" if there else f"there is no checkpoint at {place}"


def check_model(
    folder: Path, config: ModelConfig, manifest: Manifest | None = None
) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's tensors by their names in the checkpoint; it, or of adapters it and
    their base, hold just those.

    Raises:
        UserError: it is a checkpoint of another model, or its metadata can't be read.
    """
    num_saved = count_tensors(folder)
    if config.num_layers > num_saved:  # to describe so many may take for ever
        differences = [f"  {config.num_layers} layers here, {num_saved} tensors in the checkpoint"]
        refuse_another_model(folder, differences)
    shapes = shapes_of(config)
    for place, names in _places(folder, config, manifest):
        if place != folder and (problems := problems_of(inspect(place))):
            raise UserError(f"{place}: {problems[0]}; adapters in {folder} stand beside it")
        here = {name: shapes[name] for name in names}
        check_weights(place, here, prefix=_PREFIX)
    return shapes


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors by their names in checkpoints."""
    return {f"{_PREFIX}{name}": row.shape for name, row in describe(config).parameters.items()}


def read_model_into(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    manifest: Manifest | None = None,
) -> None:
    """Fill tensors in place, by their names in the checkpoint; see `reading.read_into`.

    Raises:
        UserError: they can't be read, or the base of adapters isn't there.
    """
    for place, names in _places(folder, config, manifest):
        read_into(place, {name: tensors[name] for name in names if name in tensors})


def _places(
    folder: Path, config: ModelConfig, manifest: Manifest | None
) -> Iterator[tuple[Path, list[str]]]:
    """Where the model's tensors lie, by their names there."""
    table = describe(config)
    if config.lora is None:
        yield folder, [f"{_PREFIX}{name}" for name in table.parameters]
        return
    record = (manifest or read_manifest(folder)).record
    yield folder, [f"{_PREFIX}{name}" for name in table.trained]
    others = [f"{_PREFIX}{n}" for n, row in table.parameters.items() if not row.is_trained]
    yield base_of(folder, record), others


def load_model(folder: Path, config: ModelConfig) -> Transformer:
    """The checkpoint's weights as a plain model on the CPU, in fp32.

    Raises:
        UserError: it is a checkpoint of another model or optimizer, or its shards cannot be read.
    """
    weights = {name: torch.empty(shape) for name, shape in check_model(folder, config).items()}
    read_model_into(folder, config, weights)
    return model_of(
        config, {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    )


def model_of(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Transformer:
    """A plain model that takes over the given weights; with tied embeddings they lack the head."""
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(dict(weights), strict=not config.tie_embeddings, assign=True)
    model.tie()
    return model
