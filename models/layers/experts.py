"""A mixture of experts: many feed-forward layers, of which each token goes through a few.

No token is dropped: tokens are sorted by their experts, and a product for each expert multiplies
as many rows as it has.

Shape letters: B sequences, T tokens, N tokens of a micro-batch, D hidden size, E experts, F their
hidden size, K experts of a token, R rows, one for each expert of each token, by expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triax.models import architecture
from triax.models.architecture import FeedForward, FeedForwardKind
from triax.models.layers.feed_forward import make_feed_forward
from triax.models.layers.output import LayerOutput
from triax.models.layers.router import Choice, Router

Work = Callable[[Tensor, Tensor], Tensor]
"""What experts make of rows (R, D) by expert, given how many each has (E,)."""
Visit = Callable[[Work, Tensor, Tensor, Tensor], Tensor]
"""Brings rows to their experts and back: from the work, tokens (N, D), the token that each row is
of (R,), by expert, and how many rows each expert has (E,), to what is made of the rows (R, D)."""


def grouped_product(x_RD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    """Each expert's `x @ weight.T` of its rows, (R, F).

    Args:
        ends_E: int32; where the rows of each expert end.
    """
    y_RF: Tensor = F.grouped_mm(x_RD, weight_EFD.transpose(-2, -1), offs=ends_E)
    return y_RF


def work_here(work: Work, x_ND: Tensor, tokens_R: Tensor, counts_E: Tensor) -> Tensor:
    """All experts are here."""
    return work(x_ND.index_select(0, tokens_R), counts_E)


class Experts(nn.Module):
    """E SwiGLU layers."""

    multiply: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(grouped_product)
    """How rows are multiplied: by `grouped_product`, or with parts of the weights."""
    visit: Visit = staticmethod(work_here)
    """How rows come to their experts: `work_here`, or sent to the processes that have them."""

    def __init__(self, layer: architecture.Experts, width: int) -> None:
        super().__init__()
        self.num_experts = layer.num_experts
        shape = (layer.num_experts, layer.hidden_size, width)
        self.gate = nn.Parameter(torch.empty(shape))
        self.up = nn.Parameter(torch.empty(shape))
        self.down = nn.Parameter(torch.empty(shape[0], width, layer.hidden_size))
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of what each token's experts make of it, (N, D)."""
        top_k = experts_NK.shape[1]
        experts_R, order_R = experts_NK.flatten().sort(stable=True)
        counts_E = experts_R.new_zeros(self.num_experts)
        counts_E.scatter_add_(0, experts_R, torch.ones_like(experts_R))
        rows_RD = self.visit(self._swiglu, x_ND, order_R // top_k, counts_E)
        made_NKD = rows_RD.index_select(0, order_R.argsort()).unflatten(0, (-1, top_k))
        y_ND: Tensor = (made_NKD * weights_NK[..., None]).sum(1)
        return y_ND.to(x_ND.dtype)

    def _swiglu(self, rows_RD: Tensor, counts_E: Tensor) -> Tensor:
        ends_E = counts_E.cumsum(0, dtype=torch.int32)
        gate_RF = self.multiply(rows_RD, self.gate, ends_E)
        up_RF = self.multiply(rows_RD, self.up, ends_E)
        return self.multiply(F.silu(gate_RF) * up_RF, self.down, ends_E)


class MixtureOfExperts(nn.Module):
    """A router and its experts, and one that all tokens go through if there is one."""

    def __init__(self, layer: architecture.Experts, width: int) -> None:
        super().__init__()
        self.router = Router(layer, width)
        self.sum_shapes = self.router.sum_shapes
        self.experts = Experts(layer, width)
        self.shared: nn.Module | None = None
        if layer.shared_hidden_size:
            shared = FeedForward(FeedForwardKind.SWIGLU, layer.shared_hidden_size)
            self.shared = make_feed_forward(shared, width)

    def forward(self, x_BTD: Tensor, counted_BT: Tensor | None = None) -> LayerOutput:
        """What each token's experts make of it; see `Router.forward` for the rest."""
        choice: Choice = self.router(x_BTD, counted_BT)
        y_ND = self.experts(
            x_BTD.flatten(0, 1), choice.experts_BTK.flatten(0, 1), choice.weights_BTK.flatten(0, 1)
        )
        y_BTD: Tensor = y_ND.view_as(x_BTD)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        return LayerOutput(y_BTD, choice.sums, choice.loss)
