"""fp8 layers against float64, their layouts against one process, and what isn't finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.fx
from fast_paths import ON_GPU, error
from fleet import run_fleet
from functorch.compile import make_boxed_func
from parity import label, skip_unless_torch_can
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from worlds import Case, Run, compiled_run, engine_run, merged

from triax.common.errors import UserError
from triax.models.families import model_config
from triax.models.layers.attention import Attention
from triax.models.layers.rotary import rotary_table
from triax.models.layers.transformer import Transformer
from triax.parallel.float8 import (
    RECIPES,
    Recipe,
    float8_linear,
    require_float8,
    to_float8,
    use_float8,
)

CPU = torch.device("cpu")
Linear = Callable[[Tensor, Tensor, Recipe], Tensor]


def can(recipe: str) -> bool:
    """Whether this machine's CPU can."""
    try:
        require_float8(CPU, recipe)
    except UserError:
        return False
    return True


TENSORWISE = "tensorwise"
ROWWISE = pytest.param(
    "rowwise",
    marks=pytest.mark.skipif(not can("rowwise"), reason="torch can't on a CPU before 2.13"),
)
EACH_RECIPE = pytest.mark.parametrize("recipe", [TENSORWISE, ROWWISE])

SHAPE: dict[str, Any] = dict(
    num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=2, ffn_hidden_size=64, vocab_size=96,
    qk_norm=True, z_loss=1e-3, init_std=0.1,
)  # fmt: skip

FORWARD_TOLERANCE = 0.05
"""Relative error of a product's norm: e4m3 keeps four bits, so each factor is off by up to 6%, and
by some 2.6% on average."""
BACKWARD_TOLERANCE = {"tensorwise": 0.08, "rowwise": 0.05}
"""e5m2 keeps three bits."""
BF16_TOLERANCE = 2e-2
"""Losses of fp8 and bf16 over five steps, relative."""
LAYOUT_TOLERANCE = 1e-2
"""Losses of fp8 between layouts: bf16's 5e-3, and values that underflow elsewhere."""


def factors(seed: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with tokens of unlike sizes, weights, and small gradients."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(2, 32, 1, generator=generator) * 3
    x = (torch.randn(2, 32, 64, generator=generator) * sizes).bfloat16()
    w = (torch.randn(48, 64, generator=generator) * 0.02).bfloat16()
    dy = (torch.randn(2, 32, 48, generator=generator) * 1e-7).bfloat16()
    x, w = (tensor.to(device).requires_grad_() for tensor in (x, w))
    return x, w, dy.to(device)


@EACH_RECIPE
@pytest.mark.parametrize("seed", range(3))
def test_products_are_near_those_in_float64(recipe: str, seed: int) -> None:
    check_products(recipe, *factors(seed), float8_linear)


@ON_GPU
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_products_on_a_gpu(device: str, recipe: str, compiled: bool) -> None:
    linear = torch.compile(float8_linear) if compiled else float8_linear
    check_products(recipe, *factors(7, device), linear)
    for where in range(3):
        check_not_finite(recipe, torch.nan, where, factors(0, device), linear)
        check_not_finite(recipe, torch.inf, where, factors(0, device), linear)


def check_products(recipe: str, x: Tensor, w: Tensor, dy: Tensor, linear: Linear) -> None:
    y = linear(x, w, RECIPES[recipe])
    y.backward(dy)
    x64, w64, dy64 = x.detach().double(), w.detach().double(), dy.double()
    assert 1e-3 < error(y, x64 @ w64.T) < FORWARD_TOLERANCE
    assert 1e-3 < error(x.grad, dy64 @ w64) < BACKWARD_TOLERANCE[recipe]
    expected = dy64.flatten(0, 1).T @ x64.flatten(0, 1)
    assert 1e-3 < error(w.grad, expected) < BACKWARD_TOLERANCE[recipe]


def test_a_row_of_its_own_scale_survives_an_outlier_elsewhere() -> None:
    x = torch.full((32, 16), 1e-4)
    x[0] = 1e4
    lost, kept = (to_float8(x, torch.float8_e4m3fn, RECIPES[r]) for r in ("tensorwise", "rowwise"))
    assert (lost.values[1:].float() == 0).all()
    torch.testing.assert_close(
        kept.values.float() * kept.unit[:, None], x, rtol=FORWARD_TOLERANCE, atol=0
    )


def test_a_value_is_rounded_alike_whatever_else_is_in_the_tensor() -> None:
    x = torch.linspace(0.5, 1.5, 256).view(16, 16)
    recipe = RECIPES["tensorwise"]
    alone = to_float8(x, torch.float8_e4m3fn, recipe)
    for other in (1.7, 3.0, 5.5):
        beside = torch.cat((x, torch.full((16, 16), other)))
        scaled = to_float8(beside, torch.float8_e4m3fn, recipe)
        found = scaled.values[:16].float() * scaled.unit
        assert torch.equal(found, alone.values.float() * alone.unit)


@EACH_RECIPE
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(3))
def test_what_is_not_finite_stays_so(recipe: str, bad: float, where: int) -> None:
    check_not_finite(recipe, bad, where, factors(0), float8_linear)


def check_not_finite(
    recipe: str, bad: float, where: int, given: tuple[Tensor, Tensor, Tensor], linear: Linear
) -> None:
    x, w, dy = given
    with torch.no_grad():
        given[where].view(-1)[5] = bad
    y = linear(x, w, RECIPES[recipe])
    y.backward(dy)
    assert x.grad is not None and w.grad is not None
    is_finite = [bool(tensor.isfinite().all()) for tensor in (y, x.grad, w.grad)]
    # Of the three products two have each factor in them.
    assert is_finite == [where == 2, where == 0, where == 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_scale_itself_tells_of_it(bad: float) -> None:
    """A cast may turn infinity into the largest number, as compiled ones do."""
    x = torch.ones(16, 16)
    x[3, 5] = bad
    for turned in (False, True):
        tensor, rows = (
            to_float8(x, torch.float8_e4m3fn, RECIPES[recipe], turned)
            for recipe in ("tensorwise", "rowwise")
        )
        assert tensor.unit.isnan() and tensor.values.float().isnan().all()
        assert rows.unit.isnan().nonzero().item() == (5 if turned else 3)


@EACH_RECIPE
def test_zeros_are_zeros(recipe: str) -> None:
    x, w, dy = factors(0)
    y = float8_linear(x * 0, w, RECIPES[recipe])
    y.backward(dy * 0)
    assert y.abs().max() == 0 and w.grad is not None and w.grad.abs().max() == 0


def test_compiled_equal_casts_are_one_and_weights_are_not_kept() -> None:
    """Query, key and value have one input, gate and up another: four inputs, seven weights, each
    with the largest value of its rows and of those."""
    model = Transformer(model_config(**SHAPE | {"num_layers": 1})).bfloat16()
    use_float8(model, "tensorwise")
    forward: list[torch.fx.Graph] = []

    def note(module: torch.fx.GraphModule, _inputs: Any) -> Any:
        forward.append(module.graph)
        return make_boxed_func(module.forward)

    backend = aot_autograd(
        fw_compiler=note,
        bw_compiler=lambda module, _inputs: make_boxed_func(module.forward),
        partition_fn=min_cut_rematerialization_partition,
    )
    attention = cast(Attention, model.get_submodule("blocks.0.attention"))
    block = torch.compile(model.blocks["0"].forward, backend=backend, fullgraph=True)
    x = torch.randn(2, 64, 32, dtype=torch.bfloat16, requires_grad=True)
    block(x, rotary_table(attention.layer, 64, CPU), None).sum().backward()

    nodes = list(forward[0].nodes)
    assert sum(node.target is torch.ops.aten.amax.default for node in nodes) == 2 * (4 + 7)
    [outputs] = nodes[-1].args
    in_fp8 = [
        node.meta["val"]
        for node in outputs
        if node is not None and node.meta["val"].dtype == torch.float8_e4m3fn
    ]
    assert len(in_fp8) <= 4
    assert all(128 in tensor.shape for tensor in in_fp8), "an input has 128 tokens"


def test_all_blocks_are_one_to_the_compiler() -> None:
    """Otherwise it gives up on the ninth."""
    model = Transformer(model_config(**SHAPE | {"num_layers": 3})).bfloat16()
    use_float8(model, "tensorwise")
    x = torch.randn(2, 16, 32, dtype=torch.bfloat16, requires_grad=True)
    attention = cast(Attention, model.get_submodule("blocks.0.attention"))
    rotary = rotary_table(attention.layer, 16, CPU)
    for number, block in enumerate(model.blocks.values()):
        forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            x = forward(x, rotary, None)
    assert x.isfinite().all()


def test_a_device_that_cannot_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("only on devices that can")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with pytest.raises(UserError, match=r'precision.compute: .*8\.9.*use "bf16".*devices that can'):
        require_float8(CPU, "tensorwise")


@functools.cache
def one_process(compute: str, recipe: str = "tensorwise") -> Run:
    [run] = run_fleet(1, engine_run, case(compute, recipe))
    return run


def case(compute: str, recipe: str, **options: Any) -> Case:
    precision = {"compute": compute, "fp8_recipe": recipe}
    shape: dict[str, Any] = {"model": SHAPE, "global_batch_size": 4, "num_steps": 5}
    return Case(precision=precision, **shape | options)


def furthest(losses: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


@EACH_RECIPE
def test_losses_are_near_those_of_bf16_and_not_the_same(recipe: str) -> None:
    losses, bf16 = one_process("fp8", recipe).losses, one_process("bf16").losses
    assert 1e-5 < furthest(losses, bf16) < BF16_TOLERANCE


def layout_of_rows(*layout: Any) -> Any:
    return pytest.param(*layout, "rowwise", marks=ROWWISE.marks)


LAYOUTS = [
    (1, {"activation_checkpointing": "selective"}, 2, TENSORWISE),
    (2, {"zero_stage": 3}, 1, TENSORWISE),
    (2, {"pipeline": 2}, 1, TENSORWISE),
    (2, {"pipeline": 2, "pipeline_schedule": "zbv-zero-bubble", "zero_stage": 2}, 1, TENSORWISE),
    (2, {"tensor": 2}, 1, TENSORWISE),
    layout_of_rows(2, {"zero_stage": 3, "activation_checkpointing": "selective"}, 2),
]


@pytest.mark.parametrize(
    ("num_processes", "parallel", "micro_batch_size", "recipe"), LAYOUTS, ids=label
)
def test_every_layout_agrees_with_one_process(
    num_processes: int, parallel: dict[str, Any], micro_batch_size: int, recipe: str
) -> None:
    skip_unless_torch_can(str(parallel.get("pipeline_schedule", "1f1b")))
    job = case("fp8", recipe, parallel=parallel, micro_batch_size=micro_batch_size)
    losses = merged(run_fleet(num_processes, engine_run, job)).losses
    assert furthest(losses, one_process("fp8", recipe).losses) < LAYOUT_TOLERANCE


def test_compiled_blocks_compute_the_same() -> None:
    model = SHAPE | {"num_layers": 1}
    plain = case("fp8", "tensorwise", model=model)
    selective = {"compile": True, "activation_checkpointing": "selective"}
    compiled = case("fp8", "tensorwise", model=model, parallel=selective)
    [expected] = run_fleet(1, engine_run, plain)
    [run] = run_fleet(1, compiled_run, compiled, timeout=240)
    assert run.losses[0] == expected.losses[0]
    # One product makes queries, keys and values then: its input's gradient is rounded once.
    assert furthest(run.losses, expected.losses) < LAYOUT_TOLERANCE
