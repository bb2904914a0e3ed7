"""GPT-2 (Radford et al. 2019).

LayerNorm before each part, learned positions, biases, GELU, and a head that is the embedding.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from triax.models.architecture import (
    Architecture,
    Attention,
    FeedForward,
    FeedForwardKind,
    Layer,
    Norm,
    NormKind,
)
from triax.models.config import ModelConfig, Size


class GPT2Config(ModelConfig):
    """`[model]` of the family `gpt2`."""

    family: Literal["gpt2"] = "gpt2"
    num_positions: Size = 1024
    """The longest sequence."""
    ffn_hidden_size: Size
    """`4 x hidden_size` by default."""
    tie_embeddings: bool = True

    @classmethod
    def fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        hidden = given.get("hidden_size")
        return {"ffn_hidden_size": 4 * hidden, **given} if isinstance(hidden, int) else given

    @model_validator(mode="after")
    def _consistent(self) -> GPT2Config:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        return self

    def architecture(self) -> Architecture:
        norm = Norm(NormKind.LAYER, self.norm_eps)
        head_dim = self.hidden_size // self.num_heads
        layer = Layer(
            norm=norm,
            attention=Attention(self.num_heads, self.num_heads, head_dim, has_bias=True),
            feed_forward=FeedForward(FeedForwardKind.GELU, self.ffn_hidden_size, has_bias=True),
        )
        return Architecture(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=(layer,) * self.num_layers,
            norm=norm,
            init_std=self.init_std,
            num_positions=self.num_positions,
            tie_embeddings=self.tie_embeddings,
            z_loss=self.z_loss,
        )
