"""Folders of Hugging Face's as checkpoints that a run starts from."""

from __future__ import annotations

from pathlib import Path

from triax.checkpoint.folders import refuse_existing
from triax.checkpoint.huggingface import import_huggingface
from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.parallel.agreement import RankError


def import_checkpoint(folder: Path, output: Path) -> ModelConfig:
    """Write the weights as a checkpoint of step 0, and return the model's config.

    Raises:
        UserError: the folder isn't one that we read, something is at `output`, or it can't be
            written.
    """
    refuse_existing(output)
    model, tensors = import_huggingface(folder)
    record = {
        "imported_from": str(folder),
        "step": 0,
        "config": {"model": model.model_dump(mode="json")},
    }
    shards = {f"model.{name}": whole(tensor) for name, tensor in tensors.items()}
    try:
        write_checkpoint(output, shards, record, step=0)
    except RankError as error:
        raise UserError(f"{output}: cannot be written: {error}") from error
    return model
