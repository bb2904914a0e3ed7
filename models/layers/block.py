"""A layer of the transformer.

Shape letters: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from triax.models.architecture import Experts, Layer
from triax.models.layers.attention import Attention
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.feed_forward import make_feed_forward
from triax.models.layers.norm import make_norm
from triax.models.layers.router import Objective


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    mlp: nn.Module
    """Maps (B, T, D) to (B, T, D), each token by itself."""

    def __init__(self, layer: Layer, width: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(layer.norm, width)
        self.attention = Attention(layer.attention, width)
        self.mlp_norm = make_norm(layer.norm, width)
        self.has_experts = isinstance(layer.feed_forward, Experts)
        if isinstance(layer.feed_forward, Experts):
            self.mlp = MixtureOfExperts(layer.feed_forward, width)
        else:
            self.mlp = make_feed_forward(layer.feed_forward, width)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Tensor | None,
        mask: Tensor | BlockMask | None,
        objective: Objective | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)
        h_BTD = self.mlp_norm(x_BTD)
        mixed_BTD: Tensor = x_BTD + (
            self.mlp(h_BTD, objective) if self.has_experts else self.mlp(h_BTD)
        )
        return mixed_BTD
