"""A run's model for other programs: weights, config, and a tokenizer that ends as training did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from triax.checkpoint.folders import refuse_existing, resolve_checkpoint
from triax.checkpoint.huggingface import export_huggingface
from triax.checkpoint.manifest import read_manifest
from triax.checkpoint.model import base_of
from triax.checkpoint.peft import export_peft, merged
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.run_folder import recorded_table, tokenizer_of
from triax.common.errors import UserError
from triax.inference.export_tokens import recorded_tokens, tokenizer_export, unseen_by_training
from triax.models.config import ModelConfig
from triax.models.families import recorded_model

_PREFIX = "model."
Format = Literal["hf", "peft"]


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
    format: Format = "hf",
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
    seq_len: int | None = None,
) -> Exported:
    """Write a folder that transformers loads, adapters merged into their model; or PEFT's of them.

    Args:
        path: a checkpoint's folder, or a run's, of which the newest one is taken.
        format: `peft` for adapters alone.
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
    model = _model_config(config["model"], checkpoint)
    exported, warning = None, None
    if tokenizer is not None:
        tokens = recorded_tokens(record, tokenizer)
        exported = tokenizer_export(tokenizer, tokens)
        warning = unseen_by_training(tokenizer, tokens)
    if format == "peft":
        base = _where_base_is(checkpoint, record) if model.lora is not None else ""
        export_peft(_weights(checkpoint), model, output, base=base, dtype=dtype, tokenizer=exported)
        return Exported(checkpoint, tokenizer, warning)
    export_huggingface(
        _merged_weights(checkpoint, record, model),
        model.without_adapters,
        output,
        dtype=dtype,
        tokenizer=exported,
        seq_len=seq_len or _recorded_seq_len(config, checkpoint),
    )
    return Exported(checkpoint, tokenizer, warning)


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights, by their own names."""
    tensors = read_tensors(checkpoint, prefix=_PREFIX)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _merged_weights(
    checkpoint: Path, record: Mapping[str, Any], model: ModelConfig
) -> dict[str, torch.Tensor]:
    """A checkpoint's weights, or of adapters those of their model with them merged in."""
    own = _weights(checkpoint)
    if model.lora is None:
        return own
    return merged(_weights(base_of(checkpoint, record)), own, model.lora)


def _where_base_is(checkpoint: Path, record: Mapping[str, Any]) -> str:
    """For PEFT: the folder that the adapters' model was imported from, or else its checkpoint."""
    base = base_of(checkpoint, record)
    found = read_manifest(base).record.get("imported_from")
    return found if isinstance(found, str) else str(base)


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
