"""A layer of the transformer.

Shape letters: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from triax.models.architecture import Experts, Layer
from triax.models.layers.attention import Attention
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.feed_forward import make_feed_forward
from triax.models.layers.masks import Mask
from triax.models.layers.norm import make_norm
from triax.models.layers.output import LayerOutput, Shape, declared_sums


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    mlp: nn.Module
    """Maps (B, T, D) to (B, T, D), each token by itself, or to a `LayerOutput` with that."""

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

    @property
    def sum_shapes(self) -> dict[str, Shape]:
        """The sums that its feed-forward layer hands up."""
        return declared_sums(self.mlp)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Tensor | None,
        mask: Mask,
        counted_BT: Tensor | None = None,
    ) -> Tensor | LayerOutput:
        """The layer's output, with what its feed-forward layer hands up, if anything.

        Args:
            counted_BT: for experts: how much each token counts in what they hand up.
        """
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)
        h_BTD = self.mlp_norm(x_BTD)
        mixed: Tensor | LayerOutput = (
            self.mlp(h_BTD, counted_BT) if self.has_experts else self.mlp(h_BTD)
        )
        if isinstance(mixed, LayerOutput):
            return mixed._replace(x=x_BTD + mixed.x)
        return x_BTD + mixed
