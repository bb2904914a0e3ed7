"""The checkpoint whose weights a new run begins with, and whether they mean the same there.

A checkpoint's tensors alone don't say what they mean: the same shapes hold another number of
heads, and nothing in them tells RoPE's base. So its recorded settings are compared. Imports no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from triax.checkpoint.config import CheckpointConfig
from triax.checkpoint.folders import inspect, resolve_checkpoint
from triax.common.errors import UserError
from triax.common.files import is_file
from triax.models.config import ModelConfig

_WITHOUT_MEANING = {"preset", "z_loss", "init_std"}
"""Settings that act on training alone."""


def find_initial(path: Path) -> Mapping[str, Any]:
    """The record of the checkpoint that `checkpoint.init_from` names; of its files only sizes are
    looked at.

    Raises:
        UserError: there is no good one.
    """
    if is_file(path / "config.json"):
        raise UserError(
            f"{path}: a model of transformers, no checkpoint of triax: `triax checkpoint import "
            f"{path} --output DIR` makes one, and prints the [model] section that fits"
        )
    info = inspect(resolve_checkpoint(path, contents=False))
    if info.manifest is None:
        raise UserError(str(info.problem))
    return info.manifest.record


def compare_settings(
    record: Mapping[str, Any], model: ModelConfig, checkpoint: CheckpointConfig
) -> list[str]:
    """What a checkpoint's record and the run's `[model]` say differently of its weights, to show.

    A record without a model (DeepSpeed's) says nothing.

    Raises:
        UserError: the shapes differ, or the weights would mean something else and
            `checkpoint.init_from_other_settings` isn't set.
    """
    config = record.get("config")
    if not isinstance(config, Mapping) or config.get("model") is None:
        return []
    recorded = _recorded_model(config["model"])
    old, new = recorded.model_dump(mode="json"), model.model_dump(mode="json")
    changes = [
        f"model.{name}: {_shown(old[name])} there, {_shown(new[name])} here"
        for name in new
        if name not in _WITHOUT_MEANING and old[name] != new[name]
    ]
    if not changes:
        return []
    listed = "; ".join(changes)
    if _tensors(recorded) != _tensors(model):
        raise UserError(
            f"its weights are of another model: {listed}. Take over its settings, or begin "
            "without it"
        )
    if not checkpoint.init_from_other_settings:
        raise UserError(
            f"its weights would mean something else: {listed}. Take over its settings, or set "
            "checkpoint.init_from_other_settings = true if that is what you want"
        )
    return changes


def _recorded_model(fields: Any) -> ModelConfig:
    try:
        return ModelConfig.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("model", *first["loc"]))
        raise UserError(f"its recorded {where} is not valid: {first['msg']}") from None


def _tensors(model: ModelConfig) -> tuple[object, ...]:
    """What decides which tensors a model has, and their shapes."""
    return (
        model.num_layers,
        model.hidden_size,
        model.num_heads * model.head_dim,
        model.num_kv_heads * model.head_dim,
        model.head_dim if model.qk_norm else None,
        model.ffn_hidden_size,
        model.vocab_size,
        model.tie_embeddings,
    )


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)
