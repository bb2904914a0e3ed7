"""A run's model for other programs: weights, config, and a tokenizer that ends as training did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from triax.checkpoint.folders import refuse_existing, resolve_checkpoint
from triax.checkpoint.huggingface import export_huggingface
from triax.checkpoint.manifest import read_manifest
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.run_folder import recorded_table, tokenizer_of
from triax.common.errors import UserError
from triax.inference.export_tokens import recorded_tokens, tokenizer_export, unseen_by_training
from triax.models.config import ModelConfig
from triax.models.families import recorded_model

_PREFIX = "model."


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    checkpoint: Path
    tokenizer: Path | None
    warning: str | None
    """What to know before text is given to the model."""


def export_run(
    path: Path,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
    seq_len: int | None = None,
) -> Exported:
    """Write a folder that transformers loads.

    Args:
        path: a checkpoint's folder, or a run's, of which the newest one is taken.
        dtype: of the weights; as they are by default.
        tokenizer: its folder; the run's by default.
        seq_len: the longest sequence; the run's by default.

    Raises:
        UserError: no checkpoint is at the path, or it can't be read; its record doesn't say what
            model it holds; a tokenizer is of no use; something is at `output`, or it can't be
            written.
    """
    refuse_existing(output)
    checkpoint = resolve_checkpoint(path)
    record = read_manifest(checkpoint).record
    config = recorded_table(record, "config")
    if "model" not in config:
        raise UserError(f"{checkpoint}: its record holds no model config; it was not made by a run")
    tokenizer = tokenizer or _recorded_tokenizer(config, checkpoint)
    seq_len = seq_len or _recorded_seq_len(config, checkpoint)
    exported, warning = None, None
    if tokenizer is not None:
        tokens = recorded_tokens(record, tokenizer)
        exported = tokenizer_export(tokenizer, tokens)
        warning = unseen_by_training(tokenizer, tokens)
    tensors = read_tensors(checkpoint, prefix=_PREFIX)
    export_huggingface(
        {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()},
        _model_config(config["model"], checkpoint),
        output,
        dtype=dtype,
        tokenizer=exported,
        seq_len=seq_len,
    )
    return Exported(checkpoint, tokenizer, warning)


def _model_config(fields: object, checkpoint: Path) -> ModelConfig:
    try:
        return recorded_model(fields)
    except ValidationError as error:
        raise UserError(f"{checkpoint}: its recorded model config is not valid: {error}") from error


def _recorded_tokenizer(config: Mapping[str, Any], checkpoint: Path) -> Path | None:
    recorded = tokenizer_of(checkpoint, config)
    if recorded is not None and not Path(recorded).exists():
        raise UserError(f"{recorded}: the run's tokenizer is not there; say where: --tokenizer DIR")
    return None if recorded is None else Path(recorded)


def _recorded_seq_len(config: Mapping[str, Any], checkpoint: Path) -> int:
    seq_len = recorded_table(config, "data").get("seq_len")
    if not isinstance(seq_len, int) or seq_len < 1:
        raise UserError(f"{checkpoint}: its record holds no data.seq_len; give --seq-len N")
    return seq_len
