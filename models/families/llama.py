"""Llama (Touvron et al. 2023), and what is Llama but for a flag: Qwen3 and Mistral.

RMSNorm before each part, rotary positions, grouped queries, SwiGLU, no biases.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt, model_validator

from triax.common.section import PositiveFp32
from triax.models.architecture import (
    Architecture,
    Attention,
    FeedForward,
    FeedForwardKind,
    Layer,
    Norm,
    NormKind,
    RopeScaling,
    Rotary,
)
from triax.models.config import ModelConfig, Size, fill_in_head_dim, whole_head_dim


class LlamaConfig(ModelConfig):
    """`[model]` of the family `llama`."""

    family: Literal["llama"] = "llama"
    num_kv_heads: Size
    """Grouped-query attention when below `num_heads`; the same by default."""
    head_dim: Annotated[Size, BeforeValidator(whole_head_dim)]
    """`hidden_size / num_heads` by default."""
    ffn_hidden_size: Size
    qk_norm: bool = False
    """RMSNorm over each query's and key's head dimension, before RoPE: Qwen3's."""
    rope_theta: PositiveFp32 = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: PositiveInt | None = None
    """A token sees itself and the `sliding_window - 1` tokens before it: Mistral's."""
    logit_softcap: PositiveFp32 | None = None
    """Logits become `cap * tanh(logits / cap)`."""

    @classmethod
    def fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        heads = given.get("num_heads")
        if isinstance(heads, int) and heads > 0:
            given.setdefault("num_kv_heads", heads)
        return fill_in_head_dim(given)

    @model_validator(mode="after")
    def _consistent(self) -> LlamaConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        return self

    def architecture(self) -> Architecture:
        norm = Norm(NormKind.RMS, self.norm_eps)
        layer = Layer(
            norm=norm,
            attention=Attention(
                self.num_heads,
                self.num_kv_heads,
                self.head_dim,
                qk_norm=norm if self.qk_norm else None,
                rotary=Rotary(self.rope_theta, self.rope_scaling),
                window=self.sliding_window,
            ),
            feed_forward=FeedForward(FeedForwardKind.SWIGLU, self.ffn_hidden_size),
        )
        return Architecture(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=(layer,) * self.num_layers,
            norm=norm,
            init_std=self.init_std,
            tie_embeddings=self.tie_embeddings,
            logit_softcap=self.logit_softcap,
            z_loss=self.z_loss,
        )
