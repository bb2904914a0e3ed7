"""The chunked loss against plain cross entropy in float64, and the memory that it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from triax.common.tokens import IGNORE_INDEX
from triax.models.layers.loss import LossOptions, chunk_gradient, chunked_cross_entropy

N, D, V = 50, 12, 31


def reference(
    h: Tensor, head: Tensor, targets: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    logits = h @ head.T
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    is_target = targets != IGNORE_INDEX
    log_normaliser = torch.logsumexp(logits, -1)[is_target]
    cross_entropy = torch.nn.functional.cross_entropy(
        logits, targets, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return cross_entropy + options.z_loss * log_normaliser.square().sum(), cross_entropy


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < 0.3] = IGNORE_INDEX
    return (
        torch.randn(N, D, generator=generator),
        torch.randn(V, D, generator=generator),
        targets,
    )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_value_and_gradients(chunk_tokens: int, z_loss: float, softcap: float | None) -> None:
    options = LossOptions(z_loss, softcap, chunk_tokens=chunk_tokens)
    h, head, targets = inputs(chunk_tokens)
    weight = torch.tensor(0.37)
    h32, head32 = h.clone().requires_grad_(), head.clone().requires_grad_()
    sums = chunked_cross_entropy(h32, head32, targets, weight, options)
    (3 * sums.objective).backward()

    h64, head64 = h.double().requires_grad_(), head.double().requires_grad_()
    objective, cross_entropy = reference(h64, head64, targets, options)
    (3 * 0.37 * objective).backward()
    torch.testing.assert_close(sums.objective.double(), 0.37 * objective, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.cross_entropy.double(), cross_entropy, rtol=1e-6, atol=0)
    assert h32.grad is not None and h64.grad is not None
    assert head32.grad is not None and head64.grad is not None
    torch.testing.assert_close(h32.grad.double(), h64.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head32.grad.double(), head64.grad, rtol=1e-5, atol=1e-5)


def test_no_targets_at_all_give_zero_and_no_nan() -> None:
    h, head, targets = inputs(0)
    h.requires_grad_()
    sums = chunked_cross_entropy(
        h, head, torch.full_like(targets, IGNORE_INDEX), torch.tensor(1.0), LossOptions(0.1)
    )
    sums.objective.backward()
    assert sums.objective.item() == 0
    assert h.grad is not None and h.grad.abs().max() == 0


def test_fp16_keeps_small_gradients_when_the_weight_carries_a_loss_scale() -> None:
    h = torch.zeros(1, 4, dtype=torch.float16, requires_grad=True)
    head = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float16) * 1e-4
    tiny = torch.tensor(1e-6)
    for weight, is_lost in ((tiny, True), (tiny * 2**16, False)):
        h.grad = None
        sums = chunked_cross_entropy(h, head, torch.tensor([0]), weight, LossOptions())
        sums.objective.backward()
        assert h.grad is not None
        assert (h.grad.abs().max().item() == 0) == is_lost


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's result has."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_the_whole_batchs_logits_never_exist() -> None:
    num_tokens, vocab_size = 256, 500
    h = torch.randn(num_tokens, 8, requires_grad=True)
    head = torch.randn(vocab_size, 8, requires_grad=True)
    targets = torch.randint(0, vocab_size, (num_tokens,))
    with LargestTensor() as record:
        chunked_cross_entropy(
            h, head, targets, torch.tensor(1.0), LossOptions(0.1, 30.0, chunk_tokens=16)
        ).objective.backward()
    assert record.largest == 16 * vocab_size


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_logits_gradient_is_written_over_them(compiled: bool, softcap: float | None) -> None:
    logits = torch.randn(32, 200)
    rows, weight = torch.randint(0, 200, (32,)), torch.rand(32)
    expected = logits.double().requires_grad_()
    capped = expected if softcap is None else softcap * (expected / softcap).tanh()
    losses = torch.nn.functional.cross_entropy(capped, rows, reduction="none")
    (losses * weight).sum().backward()
    normaliser = capped.detach().logsumexp(1).float()
    gradient = chunk_gradient
    if compiled:
        gradient = torch.compile(chunk_gradient, backend="aot_eager", fullgraph=True)
    found = gradient(logits, rows, normaliser, weight, LossOptions(softcap=softcap))
    assert found.data_ptr() == logits.data_ptr()
    assert expected.grad is not None
    torch.testing.assert_close(logits.double(), expected.grad, rtol=1e-4, atol=1e-7)


class Shapes(TorchDispatchMode):
    """Records the shapes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.add(result.shape)
        return result


@pytest.mark.parametrize("is_recording", [False, True])
def test_evaluation_makes_no_gradients(is_recording: bool) -> None:
    h, head, targets = inputs(3)
    weights = torch.nn.Parameter(head)
    with torch.set_grad_enabled(is_recording), Shapes() as shapes:
        chunked_cross_entropy(h, weights, targets, torch.ones(()), LossOptions())
    assert (head.shape in shapes.seen) == is_recording


@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_targets_have_weights_of_their_own(chunk_tokens: int) -> None:
    """Also negative ones, as preference losses have."""
    options = LossOptions(0.01, 5.0, chunk_tokens=chunk_tokens)
    h, head, targets = inputs(1)
    weights = torch.randn(N, generator=torch.Generator().manual_seed(2))
    is_target = targets != IGNORE_INDEX
    weights[~is_target] = torch.nan
    h32, head32 = h.clone().requires_grad_(), head.clone().requires_grad_()
    sums = chunked_cross_entropy(h32, head32, targets, torch.tensor(0.37), options, weights)
    sums.objective.backward()

    h64, head64 = h.double().requires_grad_(), head.double().requires_grad_()
    logits = 5.0 * torch.tanh(h64 @ head64.T / 5.0)
    chosen = logits.log_softmax(-1)[is_target].gather(1, targets[is_target, None])[:, 0]
    z_loss = 0.01 * logits.logsumexp(-1)[is_target].square()
    counted = weights[is_target].double()
    (0.37 * (counted * (z_loss - chosen)).sum()).backward()
    for found, expected in (
        (sums.cross_entropy, -(counted * chosen).sum()),
        (sums.z_loss, (counted * z_loss).sum()),
        (sums.log_probs_N[is_target].double(), chosen),
        (h32.grad, h64.grad),
        (head32.grad, head64.grad),
    ):
        assert found is not None and expected is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (sums.log_probs_N[~is_target] == 0).all()
