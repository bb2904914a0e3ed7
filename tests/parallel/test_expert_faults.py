"""Faults of experts in other frameworks, each looked for by the number that would show it.

Experts dropped in a conversion (Megatron-LM #5844) are in tests/checkpoint/test_experts.py.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from expert_worlds import (
    DEEPSEEK,
    EXPERTS,
    begun_runs,
    plain_expert_runs,
    sparse_model,
    starve,
    tie,
)
from fleet import run_fleet
from parity import TOLERANCE
from worlds import SEED, Begin, Case, Run, difference, merged

from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer

CLIP_NORM, NUM_STEPS = 0.5, 2
BOTH: dict[str, Any] = {"expert": 2, "tensor": 2, "zero_stage": 2}
JOBS: dict[str, tuple[dict[str, Any], dict[str, Any], Begin | None]] = {
    "expert": (EXPERTS, {"expert": 2, "zero_stage": 2}, None),
    "expert, tensor": (EXPERTS, BOTH, None),
    "expert, interleaved": (
        EXPERTS, {"expert": 2, "pipeline": 2, "pipeline_schedule": "interleaved-1f1b"}, None,
    ),
    "expert, context": (EXPERTS, {"expert": 4, "context": 2, "zero_stage": 3}, None),
    "starved": (DEEPSEEK, BOTH, starve),
    "ties": (EXPERTS, {"expert": 2, "zero_stage": 3}, tie),
}  # fmt: skip
"""By name: experts, layout of 4 processes, and how it begins."""


@functools.cache
def job(name: str) -> tuple[Run, Run]:
    """What the layout gave, and what a plain loop over one model gives."""
    found, expected = _jobs()
    number = list(JOBS).index(name)
    return found[number], expected[number]


@functools.cache
def _jobs() -> tuple[list[Run], list[Run]]:
    cases = [
        (Case(model=sparse_model(experts), parallel=layout, num_steps=NUM_STEPS,
              clip_norm=CLIP_NORM), begin)
        for experts, layout, begin in JOBS.values()
    ]  # fmt: skip
    runs = run_fleet(4, begun_runs, cases, timeout=400)
    [expected] = run_fleet(1, plain_expert_runs, cases)
    return [merged([run[n] for run in runs]) for n in range(len(cases))], expected


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.double().norm())


LAYOUTS = [name for name in JOBS if name.startswith("expert")]


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_of_experts_are_not_doubled(name: str) -> None:
    """pytorch #160285, Megatron-LM #5956: each gradient came out as often as there were processes
    of the expert axis, and Adam's losses looked right all the same."""
    found, expected = job(name)
    for weight, gradient in expected.gradients.items():
        if ".experts." in weight:
            ratio = norm(found.gradients[weight]) / norm(gradient)
            assert ratio == pytest.approx(1, rel=TOLERANCE), weight


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_norm_is_over_all_experts_and_clips_all(name: str) -> None:
    """DeepSpeed #8475: norms averaged over processes with other experts; Automodel #3816: each
    group clipped by its own norm; Megatron-LM #5916: experts missed with tensor parallelism."""
    found, expected = job(name)
    whole = sum(norm(gradient) ** 2 for gradient in found.gradients.values()) ** 0.5
    assert found.grad_norms[0] == pytest.approx(whole, rel=TOLERANCE)
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=TOLERANCE)
    assert min(found.grad_norms) > CLIP_NORM
    assert difference(found, expected).parameters <= TOLERANCE


@pytest.mark.parametrize("name", LAYOUTS)
def test_padding_and_load_are_counted_over_the_right_processes(name: str) -> None:
    """Megatron-LM #7452: a padding mask gathered over the wrong group with tensor parallelism
    (finding 5), and a local count that the global one overwrote, which doubled the balance loss's
    gradient (finding 10). A third of the targets here is left out, on each process another."""
    found, expected = job(name)
    for weight in found.gradients:
        if weight.endswith("router.weight"):
            torch.testing.assert_close(found.gradients[weight], expected.gradients[weight])
    for state in found.parameters:
        if state.endswith("router.load"):
            assert torch.equal(found.parameters[state], expected.parameters[state])


def test_balance_is_not_counted_by_micro_batch_in_an_interleaved_schedule() -> None:
    """torchtitan #2061: counts of one micro-batch were updated by the forward pass of another."""
    found, expected = job("expert, interleaved")
    assert difference(found, expected).worst <= TOLERANCE


def test_experts_without_tokens_for_whole_steps_only_decay() -> None:
    """Nor has one of the two processes of the expert axis any rows."""
    found, expected = job("starved")
    assert difference(found, expected).worst <= TOLERANCE
    fresh = Transformer(model_config(**sparse_model(DEEPSEEK)))
    initialise_model(fresh, fresh.description, SEED)
    for weight in (name for name in found.gradients if ".experts." in name):
        assert not found.gradients[weight][2:].any() and found.gradients[weight][:2].any()
        kept = (1 - 2e-3 * 0.1) ** NUM_STEPS  # AdamW's rate and decay
        begun = fresh.get_parameter(weight)[2:] * kept
        torch.testing.assert_close(found.parameters[weight][2:], begun.detach())


def test_ties_send_all_tokens_to_the_same_experts_in_every_layout() -> None:
    """In the first step; after it, experts that got nothing differ by rounding alone."""
    found, expected = job("ties")
    assert difference(found, expected).gradients <= TOLERANCE
    assert found.losses[0] == pytest.approx(expected.losses[0], rel=TOLERANCE)
    assert found.grad_norms[0] == pytest.approx(expected.grad_norms[0], rel=TOLERANCE)
    for weight in (name for name in found.gradients if ".experts." in name):
        assert sum(bool(gradient.any()) for gradient in found.gradients[weight]) == 2
