"""A linear layer with low-rank factors beside its weight (Hu et al. 2021, LoRA).

Shape letters: D input features, F output features, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triax.models.description import Description
from triax.models.lora import FACTORS


def low_rank_linear(
    x: Tensor, weight_FD: Tensor, bias_F: Tensor | None, a_RD: Tensor, b_FR: Tensor, scale: float
) -> Tensor:
    """`weight x + bias + scale * b a x` for x (..., D); (..., F)."""
    return F.linear(x, weight_FD, bias_F) + scale * F.linear(F.linear(x, a_RD), b_FR)


class LowRankLinear(nn.Linear):
    """`weight x + bias + scale * lora_b lora_a x`.

    Attributes:
        scale: what the product of the factors is multiplied by.
    """

    lora_a: Tensor
    lora_b: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, rank: int, scale: float
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.scale = scale
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return low_rank_linear(x, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)


def add_factors(model: nn.Module, description: Description, scale: float) -> None:
    """Give factors to the linear layers of which the table has some, in place."""
    for name, module in list(model.named_modules()):
        row = description.by_name.get(f"{name}.{FACTORS[0]}")
        if row is None:
            continue
        assert isinstance(module, nn.Linear)
        parent, _, leaf = name.rpartition(".")
        layer = LowRankLinear(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            rank=row.shape[0],
            scale=scale,
        )
        setattr(model.get_submodule(parent), leaf, layer)
