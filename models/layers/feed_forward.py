"""Feed-forward layers.

Shape letters: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from triax.models.architecture import FeedForward, FeedForwardKind


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020)."""

    def __init__(self, layer: FeedForward, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, layer.hidden_size, bias=layer.has_bias)
        self.up = nn.Linear(width, layer.hidden_size, bias=layer.has_bias)
        self.down = nn.Linear(layer.hidden_size, width, bias=layer.has_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


class GELU(nn.Module):
    """`down(gelu(up(x)))` (Hendrycks and Gimpel 2016), with the approximation by a tanh."""

    def __init__(self, layer: FeedForward, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, layer.hidden_size, bias=layer.has_bias)
        self.down = nn.Linear(layer.hidden_size, width, bias=layer.has_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.gelu(self.up(x_BTD), approximate="tanh"))
        return y_BTD


_KINDS: dict[FeedForwardKind, type[nn.Module]] = {
    FeedForwardKind.SWIGLU: SwiGLU,
    FeedForwardKind.GELU: GELU,
}


def make_feed_forward(layer: FeedForward, width: int) -> nn.Module:
    """The layer for hidden states of `width` features."""
    return _KINDS[layer.kind](layer, width)
