"""Learned positions.

Shape letters: B batch, T tokens, D hidden size, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LearnedPositions(nn.Module):
    """Adds each position's own vector to the tokens' (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, num_positions: int, width: int, init_std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, width))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Positions count from 0 unless they are given."""
        if positions_BT is None:
            return x_BTD + self.weight[: x_BTD.shape[1]]
        return x_BTD + F.embedding(positions_BT, self.weight)
