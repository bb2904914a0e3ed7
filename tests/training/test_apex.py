"""Whose fused Adam is used: NVIDIA's apex is told from what else has that name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from triax.common.errors import UserError
from triax.launcher.deepspeed_checks import apex_is_nvidias
from triax.parallel.config import ParallelConfig
from triax.training.apex import find_fused_adam
from triax.training.config import OptimizerConfig
from triax.training.optimizer import optimizer_maker

# Apex's interface without its kernels: it counts steps by group, outside of the state.
NVIDIAS = """
import torch
class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr, betas, eps, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (one, two), count = group["betas"], group["step"]
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - one)
                state["exp_avg_sq"].lerp_(p.grad.square(), 1 - two)
                root = (state["exp_avg_sq"] / (1 - two**count)).sqrt() + group["eps"]
                update = state["exp_avg"] / (1 - one**count) / root + group["weight_decay"] * p
                p -= group["lr"] * update
"""
STRANGERS = "raise RuntimeError('apex needs a web framework')"


@pytest.fixture(params=["none", "stranger", "nvidia"])
def apex(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Which package named apex there is."""
    package = tmp_path / "apex"
    if request.param != "none":
        package.mkdir()
        (package / "__init__.py").write_text(STRANGERS if request.param == "stranger" else "")
    if request.param == "nvidia":
        (package / "optimizers").mkdir()
        (package / "optimizers" / "__init__.py").write_text(NVIDIAS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield request.param
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.skipif(importlib.util.find_spec("apex") is not None, reason="an apex is installed")
def test_only_nvidias_is_taken(apex: str) -> None:
    config = OptimizerConfig(implementation="apex")
    problems = list(apex_is_nvidias(config, ParallelConfig(engine="deepspeed")))
    assert (find_fused_adam() is not None) == (apex == "nvidia") == (problems == [])
    make = optimizer_maker(config)
    if apex == "nvidia":
        assert type(make({"w": nn.Parameter(torch.ones(2, 2))})).__name__ == "CountedFusedAdam"
        return
    assert "NVIDIA's" in problems[0].message and '"torch"' in problems[0].message
    with pytest.raises(UserError, match='use "torch"'):
        make({"w": nn.Parameter(torch.ones(2, 2))})


def test_auto_needs_a_gpu_and_torch_takes_torchs(apex: str) -> None:  # noqa: ARG001
    for implementation in ("auto", "torch"):
        make = optimizer_maker(OptimizerConfig(implementation=implementation))  # type: ignore[arg-type]
        assert type(make({"w": nn.Parameter(torch.ones(2, 2))})) is torch.optim.AdamW


def test_the_native_engine_refuses_it() -> None:
    config = OptimizerConfig(implementation="apex")
    problems = list(apex_is_nvidias(config, ParallelConfig()))
    assert "DTensors" in problems[0].message


@pytest.mark.parametrize("apex", ["nvidia"], indirect=True)
def test_it_counts_and_updates_as_torch_does(apex: str) -> None:  # noqa: ARG001
    """In parts, as DeepSpeed updates; and from a state that was read from a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.rand(3, 2, generator=generator), "v": torch.rand(4, generator=generator)}
    finals = []
    for implementation in ("torch", "apex"):
        parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        optimizer = optimizer_maker(OptimizerConfig(lr=0.1, implementation=implementation))(  # type: ignore[arg-type]
            parameters
        )
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
