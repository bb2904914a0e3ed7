"""The families of models, by `model.family`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triax.models.config import ModelConfig
from triax.models.families.gpt2 import GPT2Config
from triax.models.families.llama import LlamaConfig
from triax.models.presets import PRESETS

FAMILIES: dict[str, type[ModelConfig]] = {"llama": LlamaConfig, "gpt2": GPT2Config}
DEFAULT = "llama"


def family_of(fields: Mapping[str, Any]) -> str:
    """The family that a `[model]` section names: by itself, by its preset, or the default."""
    preset = fields.get("preset")
    from_preset = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    family = fields.get("family", from_preset.get("family", DEFAULT))
    return family if isinstance(family, str) and family in FAMILIES else DEFAULT


def in_present_names(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a `[model]` section with what was renamed called as it is now.

    Before there were families, `gpt2-124m` was the preset that is called `llama-124m` now; a
    resolved config of that time gives all of a Llama's fields beside it.
    """
    names = {"num_kv_heads", "head_dim", "rope_theta"}
    if fields.get("preset") == "gpt2-124m" and "family" not in fields and names <= fields.keys():
        return {**fields, "preset": "llama-124m"}
    return fields


def model_config(**fields: Any) -> ModelConfig:
    """The config of a model from the fields of its section.

    Raises:
        pydantic.ValidationError: they aren't valid for their family.
    """
    return FAMILIES[family_of(fields)].model_validate(fields)


def recorded_model(fields: object) -> ModelConfig:
    """The config of a model from all of its fields, as a checkpoint's record holds them.

    The preset that they came from may have changed its shape since, and records of a time before
    there were families name none.

    Raises:
        pydantic.ValidationError: they aren't valid.
    """
    if not isinstance(fields, Mapping):
        return LlamaConfig.model_validate(fields)
    family = FAMILIES[family_of({"family": fields.get("family", DEFAULT)})]
    return family.model_validate({k: v for k, v in fields.items() if k != "preset"})
