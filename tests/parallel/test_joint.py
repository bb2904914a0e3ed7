"""Layers of one input as one product, against one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from triax.models.attention import project_apart
from triax.parallel.float8 import RECIPES, Float8Linear
from triax.parallel.joint import project_as_one

SIZES = (32, 16, 16)


def results(project: object, linears: list[nn.Linear], x: Tensor) -> list[Tensor]:
    """Outputs, the input's gradient and the weights'."""
    x = x.clone().requires_grad_()
    outputs = project(x, linears)  # type: ignore[operator]
    torch.autograd.backward(outputs, [torch.sin(3 * output.detach()) for output in outputs])
    gradients = [linear.weight.grad for linear in linears]
    for linear in linears:
        linear.weight.grad = None
    assert x.grad is not None and all(gradient is not None for gradient in gradients)
    return [*outputs, x.grad, *gradients]  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
def test_one_product_is_the_three(kind: str) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(48, size, bias=False) for size in SIZES]
    if kind == "fp8":
        linears = [Float8Linear(linear.weight, RECIPES["tensorwise"]) for linear in linears]
    x = torch.randn(2, 16, 48)
    with torch.no_grad():
        linears[1].weight *= 0.25  # has a scale of its own when it is alone
    apart, joint = results(project_apart, linears, x), results(project_as_one, linears, x)
    for one, other in zip(apart, joint, strict=True):
        # With a larger weight's scale, the smallest elements are rounded more coarsely.
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6 if kind == "fp32" else 1e-3)


def test_parts_stay_in_their_order_and_dtype() -> None:
    linears = [nn.Linear(4, size, bias=False, dtype=torch.bfloat16) for size in (1, 2, 3)]
    for number, linear in enumerate(linears):
        nn.init.constant_(linear.weight, number)
    parts = project_as_one(torch.ones(5, 4, dtype=torch.bfloat16), linears)
    assert [part.shape for part in parts] == [(5, 1), (5, 2), (5, 3)]
    for number, part in enumerate(parts):
        assert part.dtype == torch.bfloat16 and (part == 4 * number).all()
