"""Several linear layers of one input as one product: fewer and fuller matrix products.

A small one (keys and values have few heads) doesn't fill a GPU, and each writes a gradient of the
input that has to be read again to be added up.

Shape letters: D input features, F output features, of all layers together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triax.parallel.float8 import Float8Linear, float8_linear


def project_as_one(x: Tensor, linears: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Each layer's output (..., its features) for x (..., D), as parts of one tensor.

    The weights are put side by side, which moves little beside what the products move. The copy is
    kept for the backward pass, unless activations are computed again there.

    Args:
        linears: all of one kind, with biases or without, none of them split over processes.
    """
    weight_FD = torch.cat([linear.weight for linear in linears])
    first = linears[0]
    bias_F = None if first.bias is None else torch.cat([linear.bias for linear in linears])
    if isinstance(first, Float8Linear):
        y = float8_linear(x, weight_FD, first.recipe)
        y = y if bias_F is None else y + bias_F
    else:
        y = F.linear(x, weight_FD, bias_F)
    outputs: tuple[Tensor, ...] = y.split([linear.out_features for linear in linears], dim=-1)
    return outputs
