"""Layers of one input as one product, against one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from triax.models.families import model_config
from triax.models.layers.attention import Attention, project_apart
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.float8 import RECIPES, Float8Linear
from triax.parallel.fused_projections import project_as_one
from triax.parallel.nonfinite import NonFiniteFinder
from triax.parallel.parallelize import multiplies_jointly

Project = Callable[[Tensor, Sequence[nn.Linear]], Sequence[Tensor]]
SIZES = (32, 16, 16)


def results(project: Project, linears: list[nn.Linear], x: Tensor) -> list[Tensor]:
    """Outputs, the input's gradient and the weights'."""
    x = x.clone().requires_grad_()
    outputs = project(x, linears)
    torch.autograd.backward(outputs, [torch.sin(3 * output.detach()) for output in outputs])
    gradients = []
    for linear in linears:
        assert linear.weight.grad is not None
        gradients.append(linear.weight.grad)
        linear.weight.grad = None
    assert x.grad is not None
    return [*outputs, x.grad, *gradients]


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
def test_one_product_is_the_three(kind: str) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(48, size, bias=False) for size in SIZES]
    if kind == "fp8":
        linears = [Float8Linear(linear, RECIPES["tensorwise"]) for linear in linears]
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


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"compile": True}, True),
        ({"compile": False}, False),
        ({"compile": True, "tensor": 2}, False),
        ({"compile": True, "zero_stage": 3}, False),
        ({"compile": True, "pipeline": 2}, False),
        ({"compile": True, "zero_stage": 3, "activation_checkpointing": "selective"}, True),
        ({"compile": True, "pipeline": 2, "activation_checkpointing": "full"}, True),
    ],
)
def test_no_layout_keeps_copies_of_weights_that_it_would_free(
    fields: dict[str, Any], expected: bool
) -> None:
    assert multiplies_jointly(ParallelConfig(**fields)) == expected


def test_a_joint_layer_that_overflows_is_found() -> None:
    config = model_config(
        num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1, ffn_hidden_size=64, vocab_size=8
    )
    model = Transformer(config)
    attention = cast(Attention, model.get_submodule("blocks.0.attention"))
    attention.project = project_as_one
    with torch.no_grad():
        attention.key.weight.fill_(torch.inf)
    with NonFiniteFinder(model) as finder:
        model.logits(torch.zeros(1, 4, dtype=torch.int64))
    assert finder.first == "blocks.0.attention.key"
    assert attention.project is project_as_one
