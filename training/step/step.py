"""One training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from triax.models.batch import Batch
from triax.parallel.engine import Engine
from triax.training.objectives.objective import CrossEntropy, Objective
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler

N = TypeVar("N")


@dataclass(frozen=True)
class StepContext:
    """What a step works with."""

    engine: Engine
    scaler: LossScaler
    guard: Guard
    clip_norm: float | None
    objective: Objective = field(default_factory=CrossEntropy)


class StepResult(NamedTuple, Generic[N]):
    """A step's figures over all processes: fp32 scalars on the device, and on the host, which they
    reach a step later, plain numbers."""

    loss: N
    """Mean cross entropy of the target tokens, weighted if they have weights, in nats; 0 where
    there are none."""
    grad_norm: N
    """L2 norm of the whole gradient, before clipping."""
    num_targets: N
    """Target tokens, whatever they weigh."""
    total_weight: N
    """Of the target tokens, by which the loss is divided: their number if they have no weights."""
    skipped: N
    """1 if the guard refused the update."""
    loss_scale: N
    reasons: N
    """The sum of the guard's reasons; 0 if it accepted."""
    loss_score: N
    """How far the step stood out, in the guard's standard deviations."""
    norm_score: N
    drift_score: N
    own_finite: N
    """1 if this process's own part of the loss was finite. It and the next are figures of one
    process."""
    own_fingerprint: N
    """Of the data that this process has read, see `Counts`."""
    data_differs: N
    """1 if processes that should work on the same samples have read others."""
    extra: dict[str, Tensor]
    """Any others, by name: fp32 scalars or vectors, on the device and then on the host. See
    `StepSums`, and `SHOWN` in `training/records/metrics.py`."""


def train_step(
    context: StepContext, micro_batches: Sequence[Batch], lr: float
) -> StepResult[Tensor]:
    """Forward and backward over the global batch, verdict, clipped update.

    The loss is the sum over target tokens, each times its own weight, divided by their global
    weight (their number where they have none), so it doesn't depend on how the batch is divided.
    Weights are not negative: a batch whose weights sum to 0 has no targets. Another objective than
    `CrossEntropy` says itself what weighs how much. Nothing here waits for the device, unless
    `Engine.update` must.

    Args:
        context: engine, scaler, guard, clipping and objective.
        micro_batches: this process's part of the global batch.
        lr: the learning rate of this step.
    """
    engine, scale = context.engine, context.scaler.scale
    counts = engine.count_targets(micro_batches)
    weighed = context.objective.weigh(engine, micro_batches, counts)
    sums = engine.forward_backward(weighed.micro_batches, weight=scale / weighed.divisor)
    loss = sums.cross_entropy / weighed.divisor if weighed.loss is None else weighed.loss
    grad_norm = sums.grad_norm / scale
    verdict = context.guard.judge(loss, grad_norm, has_targets=weighed.has_targets)
    limit = verdict.clip_limit.clamp(max=context.clip_norm or math.inf)
    engine.update(lr, _clip_factor(grad_norm, limit) / scale, verdict.skip)
    context.scaler.update(verdict.overflowed)
    return StepResult(
        loss, grad_norm, counts.num_targets, counts.total_weight, verdict.skip, scale,
        verdict.reasons, verdict.loss_score, verdict.norm_score, verdict.drift_score,
        sums.own_finite, counts.own_fingerprint, counts.data_differs, sums.extra | weighed.extra,
    )  # fmt: skip


def _clip_factor(grad_norm: Tensor, limit: Tensor) -> Tensor:
    """What scales the gradient's norm down to the limit at most (Pascanu et al. 2013)."""
    return (limit / (grad_norm + 1e-6)).clamp(max=1.0)
