"""Attention and loss as they run on a GPU, forward and backward, against float64."""

from __future__ import annotations

import pytest
import torch
from fast_paths import EACH_DEVICE, ON_GPU, Operations, error
from torch import Tensor

from triax.common.tokens import IGNORE_INDEX
from triax.models.layers.attention import attend
from triax.models.layers.loss import (
    LossOptions,
    chunk_gradient,
    chunk_statistics,
    chunked_cross_entropy,
)
from triax.models.layers.masks import attention_mask, block_mask
from triax.parallel.schedule import attention_kernels

BF16_TOLERANCE = 2e-2
"""Relative, by norm."""


def heads(device: str, num_tokens: int, num_groups: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [
        torch.randn(2, count, num_tokens, 64, generator=generator)
        .bfloat16()
        .to(device)
        .requires_grad_()
        for count in (8, num_groups, num_groups)
    ]


def check_attention(found: Tensor, inputs: list[Tensor], mask: Tensor) -> None:
    """Value and gradients against float64 on the CPU, groups written out."""
    q, k, v = (tensor.detach().cpu().double().requires_grad_() for tensor in inputs)
    repeats = q.shape[1] // k.shape[1]
    wide = [tensor.repeat_interleave(repeats, dim=1) for tensor in (k, v)]
    scores = (q @ wide[0].mT / 8).masked_fill(~mask.cpu(), -torch.inf)
    expected = scores.softmax(-1) @ wide[1]
    generator = torch.Generator().manual_seed(0)
    above = torch.randn(found.shape, generator=generator).bfloat16()
    found.backward(above.to(found.device))
    expected.backward(above.double())
    assert error(found, expected) < BF16_TOLERANCE
    for tensor, wanted in zip(inputs, (q, k, v), strict=True):
        assert wanted.grad is not None
        assert error(tensor.grad, wanted.grad) < BF16_TOLERANCE


@ON_GPU
@pytest.mark.parametrize(
    ("kernel", "num_groups"),
    [("cudnn", 8), ("cudnn", 2), ("flash", 8), ("flash", 2), ("efficient", 8), ("math", 2)],
)
def test_the_preferred_attention_kernel_runs_and_is_right(
    device: str, kernel: str, num_groups: int
) -> None:
    inputs = q, k, v = heads(device, 256, num_groups)
    with attention_kernels([kernel, "math"]), Operations() as operations:
        found = attend(q, k, v, None)
    if kernel != "math":
        assert f"_scaled_dot_product_{kernel}_attention" in operations.names
    check_attention(found, inputs, torch.ones(256, 256, dtype=torch.bool).tril())


@EACH_DEVICE
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    "kernels", [["cudnn", "flash", "efficient", "math"], ["cudnn"], ["flash"], ["efficient"]]
)
def test_any_choice_of_kernels_gives_the_same(
    device: str, kernels: list[str], is_masked: bool
) -> None:
    inputs = q, k, v = heads(device, 64, 2)
    visible = torch.ones(64, 64, dtype=torch.bool).tril()
    with attention_kernels(kernels):
        found = attend(q, k, v, visible.to(device) if is_masked else None)
    check_attention(found, inputs, visible)


@EACH_DEVICE
@pytest.mark.parametrize("num_tokens", [64, 192, 256])
def test_low_scores_under_a_mask_give_no_nan(device: str, num_tokens: int) -> None:
    """Scores of about -120 for all keys: exp of their negative overflows fp32."""
    q, k, v = heads(device, num_tokens, 2)
    with torch.no_grad():
        q[..., 0], k[..., 0] = 1.0, -120 * 8.0
    visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    with attention_kernels(["cudnn", "flash", "efficient", "math"]):
        found = attend(q, k, v, visible.to(device))
    found.sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@ON_GPU
@pytest.mark.parametrize("window", [None, 130])
@pytest.mark.parametrize("num_tokens", [256, 200])
def test_compiled_block_masks_are_right(device: str, num_tokens: int, window: int | None) -> None:
    ids = (torch.rand(2, num_tokens, generator=torch.Generator().manual_seed(1)) < 0.03).cumsum(1)
    inputs = q, k, v = heads(device, num_tokens, 2)
    mask = block_mask(ids.int().to(device), num_tokens, window, torch.device(device))
    found = torch.compile(attend)(q, k, v, mask)
    dense = attention_mask(ids.int(), num_tokens, window, torch.device("cpu"))
    assert dense is not None
    check_attention(found, inputs, dense)


def fast_options(device: str) -> LossOptions:
    """Compiled on a GPU."""
    if device == "cpu":
        return LossOptions(1e-3, 30.0)
    return LossOptions(
        1e-3, 30.0,
        statistics=torch.compile(chunk_statistics), gradient=torch.compile(chunk_gradient),
    )  # fmt: skip


@EACH_DEVICE
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, BF16_TOLERANCE)]
)
def test_the_loss_is_right(device: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h, head = (
        (torch.randn(n, 64, generator=generator) * size).to(dtype)
        for n, size in ((2500, 1.0), (1000, 0.2))
    )
    targets = torch.randint(0, 1000, (2500,), generator=generator)
    targets[::3] = IGNORE_INDEX
    h64, head64 = h.double().requires_grad_(), head.double().requires_grad_()
    logits = 30 * torch.tanh(h64 @ head64.T / 30)
    cross_entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    normaliser = logits.logsumexp(-1)[targets != IGNORE_INDEX]
    expected = 0.01 * (cross_entropy + 1e-3 * normaliser.square().sum())
    expected.backward()

    h, head = (tensor.to(device).requires_grad_() for tensor in (h, head))
    weight = torch.tensor(0.01, device=device)
    sums = chunked_cross_entropy(h, head, targets.to(device), weight, fast_options(device))
    sums.objective.backward()
    assert h64.grad is not None and head64.grad is not None
    assert error(sums.objective, expected) < tolerance
    assert error(h.grad, h64.grad) < tolerance
    assert error(head.grad, head64.grad) < tolerance


@ON_GPU
def test_the_compiled_loss_never_has_fp32_logits_nor_all_of_them(device: str) -> None:
    num_tokens, vocab_size, width = 8192, 32768, 256
    h = torch.randn(num_tokens, width, dtype=torch.bfloat16, device=device, requires_grad=True)
    head = torch.randn(vocab_size, width, dtype=torch.bfloat16, device=device, requires_grad=True)
    targets = torch.randint(0, vocab_size, (num_tokens,), device=device)
    weight, options = torch.ones((), device=device), fast_options(device)
    chunked_cross_entropy(h, head, targets, weight, options).objective.backward()
    h.grad = head.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    chunked_cross_entropy(h, head, targets, weight, options).objective.backward()
    chunk = 1024 * vocab_size * 2
    gradients = num_tokens * width * 2 * 2 + vocab_size * width * (4 + 4 + 2 + 2)
    assert torch.cuda.max_memory_allocated() - before < 1.5 * chunk + gradients
