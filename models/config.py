"""The `[model]` section: the transformer's shape. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from triax.common.section import LARGEST_FP32, NonNegativeFp32, PositiveFp32, Section
from triax.models.presets import PRESETS

Size = Annotated[int, Field(gt=0, lt=1 << 31)]
"""Of a matrix: those that multiply matrices take 32 bits."""


class RopeScaling(Section):
    """Llama-3's stretching of RoPE's low frequencies for contexts longer than the original.

    Source: `rope_type = "llama3"` as published with Llama 3.1.
    """

    factor: float = Field(gt=1, le=LARGEST_FP32)
    low_freq_factor: PositiveFp32 = 1.0
    high_freq_factor: PositiveFp32 = 4.0
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
    num_layers: int = Field(gt=0, le=10_000)
    hidden_size: Size
    num_heads: Size
    num_kv_heads: Size
    """Grouped-query attention when below `num_heads`; the same by default."""
    head_dim: Size
    """`hidden_size / num_heads` by default."""
    ffn_hidden_size: Size
    vocab_size: Size
    tie_embeddings: bool = False
    qk_norm: bool = False
    """RMSNorm over each query's and key's head dimension, before RoPE."""
    rope_theta: PositiveFp32 = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: PositiveFp32 = 1e-5
    sliding_window: PositiveInt | None = None
    """A token sees itself and the `sliding_window - 1` tokens before it."""
    logit_softcap: PositiveFp32 | None = None
    """Logits become `cap * tanh(logits / cap)`."""
    z_loss: NonNegativeFp32 = 0.0
    """Weight of the mean squared log-normaliser (PaLM, section 5; 1e-4 there)."""
    init_std: PositiveFp32 = 0.02

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
