"""The `[model]` section: what all families have in common. Imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from triax.common.section import NonNegativeFp32, PositiveFp32, Section
from triax.models.architecture import Architecture
from triax.models.lora import LoraConfig
from triax.models.presets import PRESETS

MOST_LAYERS = 10_000
"""Far above any model, and few enough to list their parameters."""
Size = Annotated[int, Field(gt=0, lt=1 << 31)]
"""Of a matrix: those that multiply matrices take 32 bits."""


class ModelConfig(Section):
    """The shape of a decoder-only transformer; each family adds its own fields.

    `preset` fills in a published shape; any field given beside it wins over the preset.
    """

    family: str
    preset: str | None = None
    num_layers: int = Field(gt=0, le=MOST_LAYERS)
    hidden_size: Size
    num_heads: Size
    vocab_size: Size
    tie_embeddings: bool = False
    norm_eps: PositiveFp32 = 1e-5
    z_loss: NonNegativeFp32 = 0.0
    """Weight of the mean squared log-normaliser (PaLM, section 5; 1e-4 there)."""
    init_std: PositiveFp32 = 0.02
    lora: LoraConfig | None = None
    """Adapters, which are trained in place of the model."""

    @abstractmethod
    def architecture(self) -> Architecture:
        """What the model is made of."""

    @property
    def without_adapters(self) -> ModelConfig:
        """The model that adapters stand beside, or itself where there are none."""
        return self if self.lora is None else self.model_copy(update={"lora": None})

    @classmethod
    def fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Add what follows from other fields, where it isn't given.

        Raises:
            ValueError: what is given doesn't fit together.
        """
        return given

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("preset")
        if isinstance(name, str) and name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; presets are {', '.join(PRESETS)}")
        preset = PRESETS[name] if isinstance(name, str) else {}
        family = cls.model_fields["family"].default
        if preset.get("family", family) != family:
            raise ValueError(f"preset {name!r} is of the family {preset['family']!r}")
        tables = {k: preset[k] | v for k, v in given.items() if _are_tables(preset.get(k), v)}
        return cls.fill_in({**preset, **given, **tables})


def _are_tables(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


class Uneven(NamedTuple):
    """In the place of a head's dimension that would be no whole number.

    The field's own validator refuses it, so that the other fields' mistakes are said beside it.
    """

    hidden_size: int
    num_heads: int


def fill_in_head_dim(given: dict[str, Any]) -> dict[str, Any]:
    """Add `head_dim`, the hidden size over the number of heads: `Uneven` if that's not whole."""
    heads, hidden = given.get("num_heads"), given.get("hidden_size")
    if "head_dim" in given or not isinstance(hidden, int) or not isinstance(heads, int):
        return given
    if heads <= 0:
        return given
    return given | {"head_dim": Uneven(hidden, heads) if hidden % heads else hidden // heads}


def whole_head_dim(value: Any) -> Any:
    """Refuse what `fill_in_head_dim` found to be no whole number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, Uneven):
        raise ValueError(
            f"hidden_size {value.hidden_size} is not a multiple of num_heads {value.num_heads}: "
            "change one of them or give head_dim"
        )
    return value
