"""Llama (Touvron et al. 2023), and what is Llama but for a flag: Qwen3 and Mistral, and with
experts Mixtral, Qwen3-MoE, OLMoE and dots.llm1.

RMSNorm before each part, rotary positions, grouped queries, SwiGLU, no biases.
"""

from __future__ import annotations

from dataclasses import replace
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
from triax.models.experts_config import ExpertsConfig


class LlamaConfig(ModelConfig):
    """`[model]` of the family `llama`."""

    family: Literal["llama"] = "llama"
    num_kv_heads: Size
    """Grouped-query attention when below `num_heads`; the same by default."""
    head_dim: Annotated[Size, BeforeValidator(whole_head_dim)]
    """`hidden_size / num_heads` by default."""
    ffn_hidden_size: Size
    """Of layers without experts; where there are experts, that of those a token passes by default.
    """
    qk_norm: bool = False
    """RMSNorm over each query's and key's head dimension, before RoPE: Qwen3's."""
    joint_qk_norm: bool = False
    """RMSNorm over all heads of a query or key at once, before RoPE: OLMo's."""
    rope_theta: PositiveFp32 = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: PositiveInt | None = None
    """A token sees itself and the `sliding_window - 1` tokens before it: Mistral's."""
    logit_softcap: PositiveFp32 | None = None
    """Logits become `cap * tanh(logits / cap)`."""
    experts: ExpertsConfig | None = None

    @classmethod
    def fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        heads, experts = given.get("num_heads"), given.get("experts")
        if isinstance(heads, int) and heads > 0:
            given.setdefault("num_kv_heads", heads)
        if isinstance(experts, dict):
            width, top_k = experts.get("ffn_hidden_size"), experts.get("top_k")
            if isinstance(width, int) and isinstance(top_k, int):
                given.setdefault("ffn_hidden_size", width * top_k)
        return fill_in_head_dim(given)

    @model_validator(mode="after")
    def _consistent(self) -> LlamaConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        if self.qk_norm and self.joint_qk_norm:
            raise ValueError("qk_norm and joint_qk_norm are two ways to do the same: choose one")
        layers = range(self.num_layers)
        if self.experts is not None and not any(map(self.experts.has_experts, layers)):
            raise ValueError("experts: no layer has any; see first_dense_layers and layer_step")
        return self

    def architecture(self) -> Architecture:
        norm = Norm(NormKind.RMS, self.norm_eps)
        dense = Layer(
            norm=norm,
            attention=Attention(
                self.num_heads,
                self.num_kv_heads,
                self.head_dim,
                qk_norm=norm if self.qk_norm or self.joint_qk_norm else None,
                norms_heads_jointly=self.joint_qk_norm,
                rotary=Rotary(self.rope_theta, self.rope_scaling),
                window=self.sliding_window,
            ),
            feed_forward=FeedForward(FeedForwardKind.SWIGLU, self.ffn_hidden_size),
        )
        layers = [dense] * self.num_layers
        if self.experts is not None:
            sparse = replace(dense, feed_forward=self.experts.layer())
            has_experts = map(self.experts.has_experts, range(self.num_layers))
            layers = [sparse if has else dense for has in has_experts]
        return Architecture(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=tuple(layers),
            norm=norm,
            init_std=self.init_std,
            tie_embeddings=self.tie_embeddings,
            logit_softcap=self.logit_softcap,
            z_loss=self.z_loss,
        )
