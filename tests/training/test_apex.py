"""Whose fused Adam and RMSNorm are used: NVIDIA's apex is told from what else has that name.

The tests on a CPU have a stand-in with apex's interface: they test how we use it, not apex.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from apex_stand_in import KINDS, write_apex
from torch import Tensor, nn
from torch.nn import functional as F

from triax.common.errors import UserError
from triax.launcher.checks.deepspeed import apex_is_nvidias
from triax.models.description import Parameter, Role
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.engine import RMSNorm
from triax.training.config import OptimizerConfig
from triax.training.step.apex import chosen, find_fused_adam, find_fused_rms_norm
from triax.training.step.optimizer import optimizer_maker

FP32 = PrecisionConfig(compute="fp32")
TABLE = {
    "w": Parameter("w", (3, 2), Role.COLUMN, 0),
    "v": Parameter("v", (4,), Role.NORM, 0),
}


@pytest.fixture(params=KINDS)
def apex(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Which package named apex there is."""
    write_apex(tmp_path, request.param)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield request.param
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.skipif(importlib.util.find_spec("apex") is not None, reason="an apex is installed")
def test_only_nvidias_is_taken(apex: str) -> None:
    """And that only with its kernels, which `triax check` can't look for."""
    config = OptimizerConfig(implementation="apex")
    problems = list(apex_is_nvidias(config, ParallelConfig(engine="deepspeed")))
    assert (problems == []) == (apex in ("nvidia", "not-compiled"))
    make = optimizer_maker(config, FP32, TABLE)
    if apex == "nvidia":
        assert type(make({"w": nn.Parameter(torch.ones(2, 2))})).__name__ == "CountedFusedAdam"
        assert rms_norm(config) is not None
        return
    for problem in problems:
        assert "NVIDIA's" in problem.message and '"torch"' in problem.message
    with pytest.raises(UserError, match='use "torch"'):
        make({"w": nn.Parameter(torch.ones(2, 2))})
    with pytest.raises(UserError, match='use "torch"'):
        rms_norm(config)


def rms_norm(config: OptimizerConfig, *, on_cuda: bool = False) -> object:
    return chosen(config, find_fused_rms_norm, can_take=True, on_cuda=on_cuda)


def test_auto_needs_a_gpu_and_torch_takes_torchs(apex: str) -> None:  # noqa: ARG001
    for implementation in ("auto", "torch"):
        make = optimizer_maker(make_config(implementation), FP32, TABLE)
        assert type(make({"w": nn.Parameter(torch.ones(2, 2))})) is torch.optim.AdamW
        assert rms_norm(make_config(implementation)) is None


@pytest.mark.skipif(importlib.util.find_spec("apex") is not None, reason="an apex is installed")
def test_auto_takes_it_on_cuda_where_it_is(apex: str) -> None:
    found = rms_norm(make_config("auto"), on_cuda=True)
    assert (found is not None) == (apex == "nvidia")
    assert rms_norm(make_config("torch"), on_cuda=True) is None


def make_config(implementation: str) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"implementation": implementation})


def test_the_native_engine_refuses_it() -> None:
    config = OptimizerConfig(implementation="apex")
    problems = list(apex_is_nvidias(config, ParallelConfig()))
    assert "DTensors" in problems[0].message


def test_offloaded_weights_are_not_for_it() -> None:
    """They are updated on the CPU, and apex would be given them there."""
    parallel = ParallelConfig(engine="deepspeed", zero_stage=3, offload="cpu")
    problems = list(apex_is_nvidias(OptimizerConfig(implementation="apex"), parallel))
    assert "on the device only" in problems[0].message and '"torch"' in problems[0].message


@pytest.mark.parametrize("apex", ["nvidia"], indirect=True)
def test_it_counts_and_updates_as_torch_does(apex: str) -> None:  # noqa: ARG001
    """In parts, as DeepSpeed updates; and from a state that was read from a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.rand(3, 2, generator=generator), "v": torch.rand(4, generator=generator)}
    finals = []
    for implementation in ("torch", "apex"):
        parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        config = OptimizerConfig(lr=0.1, implementation=implementation)
        optimizer = optimizer_maker(config, FP32, TABLE)(parameters)
        for step in range(5):
            for parameter in parameters.values():
                parameter.grad = torch.sin(parameter.detach() + step)
            groups = optimizer.param_groups
            for group in groups:
                optimizer.param_groups = [group]
                optimizer.step()
            optimizer.param_groups = groups
            for group in groups:
                group.pop("step", None)  # what apex keeps besides the state is lost at a restart
        counts = [optimizer.state[parameter]["step"].item() for parameter in parameters.values()]
        assert counts == [5, 5]
        finals.append(parameters)
    for name in start:
        torch.testing.assert_close(finals[1][name], finals[0][name], rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nvidias_norm_is_as_near_to_fp64_as_torchs(dtype: torch.dtype) -> None:
    """Forward and backward, on activations of a model's width."""
    apex_norm = find_fused_rms_norm()
    if apex_norm is None:
        pytest.skip("NVIDIA's apex is not installed")
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4, 64, 1024, device="cuda", dtype=dtype, generator=generator)
    weight = torch.rand(1024, device="cuda", dtype=dtype, generator=generator)
    exact = passes(lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), x.double(), weight.double())
    ours = passes(lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), x, weight)
    apexs = passes(apex_norm, x, weight)
    for found, torchs, expected in zip(apexs, ours, exact, strict=True):
        assert found.dtype == dtype
        error = (found.double() - expected).abs().max()
        assert error <= 2 * (torchs.double() - expected).abs().max() + 1e-6


@pytest.mark.gpu
def test_nvidias_adam_updates_as_torchs() -> None:
    fused_adam = find_fused_adam()
    if fused_adam is None:
        pytest.skip("NVIDIA's apex is not installed")
    finals = []
    for implementation in ("torch", "apex"):
        weight = nn.Parameter(torch.linspace(-1, 1, 4096, device="cuda").view(64, 64))
        optimizer = optimizer_maker(make_config(implementation), FP32, TABLE)({"w": weight})
        for step in range(10):
            weight.grad = torch.sin(weight.detach() * 3 + step)
            optimizer.step()
        finals.append(weight.detach())
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-6, atol=1e-7)


def passes(norm: RMSNorm, x: Tensor, weight: Tensor) -> list[Tensor]:
    """The norm's result, and the gradients of its input and its weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    result = norm(x, weight, 1e-5)
    result.backward(torch.cos(torch.arange(x.numel(), device=x.device).view(x.shape)).to(x.dtype))
    assert x.grad is not None and weight.grad is not None
    return [result.detach(), x.grad, weight.grad]
