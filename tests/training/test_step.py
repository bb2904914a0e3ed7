"""Nothing between the backward pass and the update waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fleet import run_fleet
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import Case, make_context, make_engine, micro_batches

from triax.training.stability.config import StabilityConfig
from triax.training.stability.guard import Guard, Verdict
from triax.training.step import StepContext, train_step


class NoWaiting(TorchDispatchMode):
    """Refuses operations that need a value on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), name
        return func(*args, **(kwargs or {}))


class WatchedGuard(Guard):
    """From its first look on, nobody may wait."""

    mode: NoWaiting | None = None

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Verdict:
        self.mode = NoWaiting()
        self.mode.__enter__()
        return super().judge(loss, grad_norm)


def watched_steps(poison: bool) -> list[float]:
    case = Case(parallel={"zero_stage": 1})
    engine = make_engine(case)
    context = make_context(case, engine)
    guard = WatchedGuard(StabilityConfig(adaptive_clip_percentile=50.0), engine.device)
    context = StepContext(engine, context.scaler, guard, context.clip_norm)
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    skipped = []
    for step in range(3):
        if poison:
            engine.parameters["norm.weight"].to_local().data[0] = float("nan")
        result = train_step(context, micro_batches(case, step), lr=1e-3)
        assert guard.mode is not None
        guard.mode.__exit__(None, None, None)
        skipped.append(result.skipped.item())
    unchanged = torch.equal(
        before["head.weight"].to_local(), engine.parameters["head.weight"].to_local()
    )
    assert unchanged == poison
    return skipped


@pytest.mark.parametrize("poison", [False, True])
def test_from_the_verdict_to_the_update_nobody_waits(poison: bool) -> None:
    for skipped in run_fleet(2, watched_steps, poison):
        assert skipped == [float(poison)] * 3


def located() -> list[str | None]:
    case = Case()
    engine = make_engine(case)
    batches = micro_batches(case, 0)
    found = [engine.locate_non_finite(batches)]
    weight = engine.parameters["blocks.1.mlp.up.weight"].to_local()
    weight.data.fill_(3e38)
    found.append(engine.locate_non_finite(batches))
    weight.data.fill_(float("nan"))
    found.append(engine.locate_non_finite(batches))
    return found


def test_the_first_module_with_a_non_finite_value_is_found() -> None:
    (found,) = run_fleet(1, located)
    assert found == [None, "blocks.1.mlp.up", "parameter blocks.1.mlp.up.weight"]
