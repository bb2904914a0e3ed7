"""The `[model]` section: the transformer's shape. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, model_validator

from triax.common.section import Section
from triax.models.presets import PRESETS


class RopeScaling(Section):
    """Llama-3's stretching of RoPE's low frequencies for contexts longer than the original.

    Source: `rope_type = "llama3"` as published with Llama 3.1.
    """

    factor: float = Field(gt=1)
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    original_seq_len: PositiveInt = 8192

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be below high_freq_factor")
        return self


class ModelConfig(Section):
    """The shape of a decoder-only transformer.

    `preset` fills in a published shape; any field given beside it wins over the preset.
    """

    preset: str | None = None
    num_layers: PositiveInt
    hidden_size: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    """Grouped-query attention when below `num_heads`; the same by default."""
    head_dim: PositiveInt
    """`hidden_size / num_heads` by default."""
    ffn_hidden_size: PositiveInt
    vocab_size: PositiveInt
    tie_embeddings: bool = False
    qk_norm: bool = False
    """RMSNorm over each query's and key's head dimension, before RoPE."""
    rope_theta: float = Field(10_000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    norm_eps: float = Field(1e-5, gt=0)
    sliding_window: PositiveInt | None = None
    """A token sees itself and the `sliding_window - 1` tokens before it."""
    logit_softcap: float | None = Field(None, gt=0)
    """Logits become `cap * tanh(logits / cap)`."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the mean squared log-normaliser (PaLM, section 5; 1e-4 there)."""
    init_std: float = Field(0.02, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("preset")
        if isinstance(name, str) and name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; presets are {', '.join(PRESETS)}")
        filled = {**(PRESETS[name] if isinstance(name, str) else {}), **given}
        heads, hidden = filled.get("num_heads"), filled.get("hidden_size")
        if isinstance(heads, int) and heads > 0:
            filled.setdefault("num_kv_heads", heads)
            if isinstance(hidden, int) and "head_dim" not in filled:
                if hidden % heads:
                    raise ValueError(
                        f"hidden_size {hidden} is not a multiple of num_heads {heads}: "
                        "change one of them or give head_dim"
                    )
                filled["head_dim"] = hidden // heads
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        return self
