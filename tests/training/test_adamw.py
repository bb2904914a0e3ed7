"""Our AdamW against torch's, its rounding, and gradients and moments in bf16 in real layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_paths import ON_GPU, compiled_updates
from fleet import run_fleet
from parity import label, reference, skip_unless_torch_can
from torch import Tensor
from torch.optim import AdamW
from worlds import (
    Case,
    difference,
    differing_weights,
    engine_run,
    live_bytes_of_a_step,
    merged,
    run_leg,
)

from triax.training.step.adamw import MixedAdamW, random_bits, round_stochastically

BETAS, EPS = (0.9, 0.95), 1e-8


def updated(
    state_dtype: torch.dtype | None,
    num_steps: int = 30,
    skip: int | None = None,
    device: str = "cpu",
) -> tuple[Tensor, dict[str, Tensor]]:
    """A weight after some steps, and its state; by torch's own for None."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(300, 7, generator=generator).to(device))
    groups = [{"params": [weight], "weight_decay": 0.1}]
    optimizer: Any = (
        AdamW(groups, lr=1e-2, betas=BETAS, eps=EPS, fused=True)
        if state_dtype is None
        else MixedAdamW(groups, 1e-2, BETAS, EPS, state_dtype)
    )
    for step in range(num_steps):
        gradient = torch.randn(300, 7, generator=generator).to(device)
        weight.grad = gradient * torch.nan if step == skip else gradient
        optimizer.grad_scale = torch.tensor(4.0, device=device)
        optimizer.found_inf = torch.tensor(float(step == skip), device=device)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def test_with_fp32_moments_it_is_torchs() -> None:
    (weight, state), (expected, wanted) = updated(torch.float32, skip=7), updated(None, skip=7)
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    assert state.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(state[key], wanted[key], rtol=1e-5, atol=1e-7)


@ON_GPU
def test_the_compiled_update_is_the_plain_one(device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        (weight, state), (expected, wanted) = updated(dtype, device=device), updated(dtype)
        torch.testing.assert_close(weight.cpu(), expected, rtol=0, atol=1e-5)
        for key in wanted:
            is_near = (state[key].cpu().float() - wanted[key].float()).abs() <= (
                1e-2 * wanted[key].float().abs()
            )
            assert is_near.float().mean() > 0.999, key


def test_bf16_moments_stay_near_fp32_ones_without_a_bias() -> None:
    (weight, state), (expected, wanted) = updated(torch.bfloat16, 200), updated(None, 200)
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-2)
    ratio = state["exp_avg_sq"].float() / wanted["exp_avg_sq"]
    assert abs(ratio.mean().item() - 1) < 1e-3 and ratio.std().item() < 2e-2


def test_a_second_moment_in_bf16_follows_however_slowly() -> None:
    """Rounded to the nearest, it would never leave 1."""
    weight = torch.nn.Parameter(torch.zeros(4096))
    optimizer = MixedAdamW([{"params": [weight]}], 0.0, (0.9, 0.999), EPS, torch.bfloat16)
    weight.grad = torch.zeros(4096)
    optimizer.step()
    optimizer.state[weight]["exp_avg_sq"].fill_(1.0)
    for _ in range(100):
        optimizer.step()
    mean = optimizer.state[weight]["exp_avg_sq"].float().mean().item()
    assert mean == pytest.approx(0.999**100, rel=2e-3)


def test_a_skipped_step_changes_not_a_bit() -> None:
    before, after = updated(torch.bfloat16, 7), updated(torch.bfloat16, 8, skip=7)
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(before[1][key], after[1][key]) for key in before[1])


def test_rounding_by_chance_hits_the_value_on_average() -> None:
    bits = random_bits(1 << 16, torch.tensor(3.0), torch.tensor(5, dtype=torch.int32)) & 0xFFFF
    for value in (1.001, -1.001, 3e-30, -7.77e20):
        rounded = round_stochastically(torch.full((1 << 16,), value), bits)
        assert torch.equal(rounded, rounded.bfloat16().float())
        assert rounded.mean().item() == pytest.approx(value, rel=1e-4)
        assert len(rounded.unique()) == 2
    exact = torch.tensor([0.0, -0.0, 1.5, torch.inf]).repeat_interleave(1 << 14)
    assert torch.equal(round_stochastically(exact, bits), exact)
    not_numbers = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert (
        round_stochastically(not_numbers, torch.full((3,), 0xFFFF, dtype=torch.int32)).isnan().all()
    )


def test_stretches_of_a_parameter_draw_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is compiled nothing is divided, and a run may go on there."""
    whole = updated(torch.bfloat16, 5)
    monkeypatch.setattr("triax.training.step.adamw._STRETCH", 64)
    divided = updated(torch.bfloat16, 5)
    assert torch.equal(whole[0], divided[0])
    assert all(torch.equal(whole[1][key], divided[1][key]) for key in whole[1])


def test_bits_differ_by_place_step_and_stretch() -> None:
    draws = [
        random_bits(1 << 12, torch.tensor(step), torch.tensor(chance, dtype=torch.int32))
        for step in (1.0, 2.0) for chance in (0, 1)
    ]  # fmt: skip
    for draw in draws:
        assert len(draw.unique()) > 4090
        shares = [float((draw >> bit & 1).float().mean()) for bit in range(32)]
        assert all(abs(share - 0.5) < 0.05 for share in shares)
    for one in range(4):
        for other in range(one):
            assert (draws[one] == draws[other]).float().mean() < 0.01


# Gradients that lose 16 of 24 bits move AdamW's first updates by about as much.
BF16: dict[str, Any] = {"precision": {"gradients": "bf16"}}
STATES: dict[str, Any] = {"optimizer": {"lr": 2e-3, "eps": 1e-5, "state_dtype": "bf16"}}
TOLERANCE = 1e-2
"""Relative, of losses over ten steps."""


@pytest.mark.parametrize(
    ("num_processes", "parallel", "what"),
    [
        (1, {}, STATES),
        (2, {"zero_stage": 1}, BF16 | STATES),
        (2, {"zero_stage": 3}, BF16 | STATES),
        (2, {"tensor": 2}, BF16 | STATES),
    ],
    ids=label,
)
def test_bf16_gradients_and_moments_in_every_layout(
    num_processes: int, parallel: dict[str, Any], what: dict[str, Any]
) -> None:
    run = merged(run_fleet(num_processes, engine_run, Case(parallel=parallel, **what)))
    found = difference(run, reference(tied=False))
    assert 1e-6 < found.losses < TOLERANCE, found
    dtypes = {gradient.dtype for gradient in run.gradients.values()}
    assert dtypes == ({torch.bfloat16} if "precision" in what else {torch.float32})


@pytest.mark.parametrize("implementation", ["torch", "compiled"])
def test_the_model_computes_with_the_masters_values(implementation: str) -> None:
    optimizer = {"lr": 1e-2, "implementation": implementation}
    case = Case(precision={"compute": "bf16"}, optimizer=optimizer)
    [found] = run_fleet(1, differing_weights, case)
    assert found == [[]] * 6


def test_our_own_optimizer_gives_torchs_losses_on_masters() -> None:
    options = {"lr": 2e-3, "eps": 1e-5}
    bf16 = {"compute": "bf16"}
    [expected] = run_fleet(1, engine_run, Case(precision=bf16, optimizer=options))
    compiled = options | {"implementation": "compiled"}
    [found] = run_fleet(1, engine_run, Case(precision=bf16, optimizer=compiled))
    assert difference(found, expected).losses < 1e-3
    assert found.losses != expected.losses


@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_that_nothing_is_added_to_stays_in_bf16_and_loses_nothing(tied: bool) -> None:
    model = {**Case().model, "tie_embeddings": tied}
    one = Case(model=model, precision={"compute": "bf16"}, micro_batch_size=8)
    compiled = replace(one, optimizer=one.optimizer | {"implementation": "compiled"})
    [expected], [found] = (run_fleet(1, engine_run, case) for case in (one, compiled))
    assert {gradient.dtype for gradient in expected.gradients.values()} == {torch.float32}
    for name, gradient in expected.gradients.items():
        is_sum = tied and name == "embedding.weight"
        kept = torch.float32 if is_sum or gradient.ndim == 1 else torch.bfloat16
        assert found.gradients[name].dtype == kept, name
        assert torch.equal(found.gradients[name].float(), gradient), name
    assert found.losses[:2] == expected.losses[:2]
    assert found.grad_norms[0] == pytest.approx(expected.grad_norms[0], rel=1e-6)
    assert difference(found, expected).losses < 1e-3
    [several] = run_fleet(1, engine_run, replace(compiled, micro_batch_size=4))
    assert {gradient.dtype for gradient in several.gradients.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("state_dtype", "tied", "num_graphs"),
    [("fp32", False, [4, 6, 6, 6, 6]), ("bf16", True, [4, 5, 5, 5, 5])],
)
def test_what_is_compiled_is_the_plain_update_and_compiled_once(
    state_dtype: str, tied: bool, num_graphs: list[int]
) -> None:
    """Blocks' matrices, their vectors, the embedding (and head) and the last norm; those whose
    gradients stay in bf16 anew where there are several micro-batches."""
    case = Case(
        model={**Case().model, "tie_embeddings": tied},
        precision={"compute": "bf16"},
        optimizer={"lr": 2e-3, "implementation": "compiled", "state_dtype": state_dtype},
    )
    [(counts, differing)] = run_fleet(1, compiled_updates, case, [1, 8, 1, 4, 1])
    assert (counts, differing) == (num_graphs, [])


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved-zero-bubble"])
def test_tied_gradients_of_two_stages_meet_in_bf16(schedule: str) -> None:
    skip_unless_torch_can(schedule)
    model = {**Case().model, "tie_embeddings": True}
    case = Case(model=model, parallel={"pipeline": 2, "pipeline_schedule": schedule}, **BF16)
    run = merged(run_fleet(2, engine_run, case))
    found = difference(run, reference(tied=True))
    assert 1e-6 < found.losses < TOLERANCE, found
    assert {gradient.dtype for gradient in run.gradients.values()} == {torch.bfloat16}


def test_bf16_moments_come_back_exactly_in_another_layout(tmp_path: Path) -> None:
    folder = str(tmp_path)
    [first] = run_fleet(1, run_leg, Case(**BF16, **STATES), folder, 0, 3)
    sharded = Case(parallel={"zero_stage": 3}, **BF16, **STATES)
    second = run_fleet(2, run_leg, sharded, folder, 3, 2)[0]
    assert any(tensor.dtype == torch.bfloat16 for tensor in first.saved.values())
    assert first.saved.keys() == second.loaded.keys()
    for name, tensor in first.saved.items():
        assert tensor.dtype == second.loaded[name].dtype
        assert torch.equal(tensor, second.loaded[name]), name


def test_moments_may_change_their_dtype_at_a_restart(tmp_path: Path) -> None:
    [first] = run_fleet(1, run_leg, Case(), str(tmp_path), 0, 2)
    [second] = run_fleet(1, run_leg, Case(**STATES), str(tmp_path), 2, 1)
    name = next(name for name in first.saved if name.endswith("exp_avg"))
    assert torch.equal(first.saved[name].bfloat16(), second.loaded[name])


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_fp32_gradients_of_the_whole_model_never_exist(zero_stage: int) -> None:
    """The weights: 4 bytes; moments: 8 or 4; gradients: 4 or 2; and bf16 copies at stage 1."""
    compute = {"compute": "bf16"}
    parallel = {"zero_stage": zero_stage}
    plain = Case(precision=compute, parallel=parallel)
    lean = Case(precision=compute | {"gradients": "bf16"}, **STATES, parallel=parallel)
    [usual], [less] = (run_fleet(1, live_bytes_of_a_step, case) for case in (plain, lean))
    saved_by_gradients_and_moments = 2 + 4
    assert usual - less == pytest.approx(saved_by_gradients_and_moments, abs=0.3)
