"""Folders of transformers' and of PEFT's as checkpoints that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from triax.checkpoint.folders import inspect, refuse_existing, resolve_checkpoint
from triax.checkpoint.huggingface import import_huggingface
from triax.checkpoint.model import base_record
from triax.checkpoint.peft import import_peft
from triax.checkpoint.run_folder import recorded_table
from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.families import recorded_model
from triax.parallel.agreement import RankError


def import_checkpoint(folder: Path, output: Path) -> ModelConfig:
    """Write the weights as a checkpoint of step 0, and return the model's config.

    Raises:
        UserError: the folder isn't one that we read, something is at `output`, or it can't be
            written.
    """
    refuse_existing(output)
    model, tensors = import_huggingface(folder)
    _write(folder, output, model, tensors, {})
    return model


def import_adapters(folder: Path, output: Path, base: Path) -> ModelConfig:
    """Write PEFT's adapters as a checkpoint of step 0; returns the config of the model with them.

    Args:
        base: the checkpoint whose weights they stand beside, or a run's folder.

    Raises:
        UserError: the folder isn't one that we read, the base is no good checkpoint or of another
            model, something is at `output`, or it can't be written.
    """
    refuse_existing(output)
    info = inspect(resolve_checkpoint(base))
    assert info.manifest is not None
    try:
        fields = recorded_table(info.manifest.record, "config").get("model")
        base_model = recorded_model(fields)
    except ValidationError as error:
        raise UserError(f"{info.path}: its record holds no valid model: {error}") from None
    if base_model.lora is not None:
        raise UserError(f"{info.path}: holds adapters itself; name the checkpoint of their base")
    model, tensors = import_peft(folder, base_model)
    _write(folder, output, model, tensors, {"base": base_record(info)})
    return model


def _write(
    folder: Path,
    output: Path,
    model: ModelConfig,
    tensors: Mapping[str, Tensor],
    more: Mapping[str, Any],
) -> None:
    record = {
        "imported_from": str(folder.absolute()),
        "step": 0,
        "config": {"model": model.model_dump(mode="json")},
        **more,
    }
    shards = {f"model.{name}": whole(tensor) for name, tensor in tensors.items()}
    try:
        write_checkpoint(output, shards, record, step=0)
    except RankError as error:
        raise UserError(f"{output}: cannot be written: {error}") from error
