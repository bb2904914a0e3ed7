"""Steps that are watched for waits, for values that are not finite, and for agreement.

Forked processes import what they run by name, so it stands here and not in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import Case, make_context, make_engine, micro_batches

from triax.training.loop.control import ControlLine, Requests
from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Guard, Verdict
from triax.training.step.step import StepContext, train_step


class NoWaiting(TorchDispatchMode):
    """Refuses operations that need a value on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), name
        return func(*args, **(kwargs or {}))


class WatchedGuard(Guard):
    """From its first look on, nobody may wait."""

    mode: NoWaiting | None = None

    def judge(self, loss: Tensor, grad_norm: Tensor, has_targets: Tensor | None = None) -> Verdict:
        self.mode = NoWaiting()
        self.mode.__enter__()
        return super().judge(loss, grad_norm, has_targets)


def watched_steps(poison: bool) -> list[float]:
    """Whether each of three steps was skipped; nothing may wait from its verdict to its update."""
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


def located() -> list[str | None]:
    """The module named for sound weights, for one that overflows, for one that is NaN."""
    case = Case()
    engine = make_engine(case)
    batches = micro_batches(case, 0)
    found = [engine.locate_non_finite(batches)]
    weight = engine.parameters["blocks.1.mlp.up.weight"]
    weight.data.fill_(3e38)
    found.append(engine.locate_non_finite(batches))
    weight.data.fill_(float("nan"))
    found.append(engine.locate_non_finite(batches))
    return found


def answers_of(asking_rank: int, asking_step: int) -> list[Requests]:
    """What is agreed on at five steps, in one of which one rank asks for a stop."""
    line = ControlLine(dist.new_group(backend="gloo"))
    return [
        line.exchange(Requests(stop=dist.get_rank() == asking_rank and step == asking_step))
        for step in range(5)
    ]
