"""One training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from triax.parallel.engine import Engine, MicroBatch
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler


@dataclass(frozen=True)
class StepContext:
    """What a step works with."""

    engine: Engine
    scaler: LossScaler
    guard: Guard
    clip_norm: float | None


class StepResult(NamedTuple):
    """A step's figures over all processes: fp32 scalars, still on the device."""

    loss: Tensor
    """Mean cross entropy of the target tokens, in nats; 0 where there are none."""
    grad_norm: Tensor
    """L2 norm of the whole gradient, before clipping."""
    num_targets: Tensor
    skipped: Tensor
    """1 if the guard refused the update."""
    loss_scale: Tensor
    reasons: Tensor
    """The sum of the guard's reasons; 0 if it accepted."""
    loss_score: Tensor
    """How far the step stood out, in the guard's standard deviations."""
    norm_score: Tensor
    drift_score: Tensor
    own_finite: Tensor
    """1 if this process's own part of the loss was finite. It and the next are figures of one
    process."""
    own_fingerprint: Tensor
    """Of the data that this process has read, see `Counts`."""
    data_differs: Tensor
    """1 if processes that should work on the same samples have read others."""


def train_step(context: StepContext, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
    """Forward and backward over the global batch, verdict, clipped update.

    The loss is the sum over target tokens divided by their global number, so it doesn't depend on
    how the batch is divided. Nothing here waits for the device, unless `Engine.update` must.

    Args:
        context: engine, scaler, guard and clipping.
        micro_batches: this process's part of the global batch.
        lr: the learning rate of this step.
    """
    engine, scale = context.engine, context.scaler.scale
    counts = engine.count_targets(micro_batches)
    # A batch without any target has a gradient of zero, not of 0/0.
    num_targets = counts.num_targets.clamp(min=1)
    sums = engine.forward_backward(micro_batches, weight=scale / num_targets)
    loss, grad_norm = sums.cross_entropy / num_targets, sums.grad_norm / scale
    verdict = context.guard.judge(loss, grad_norm, has_targets=counts.num_targets > 0)
    limit = verdict.clip_limit.clamp(max=context.clip_norm or math.inf)
    engine.update(lr, _clip_factor(grad_norm, limit) / scale, verdict.skip)
    context.scaler.update(verdict.overflowed)
    return StepResult(
        loss, grad_norm, counts.num_targets, verdict.skip, scale, verdict.reasons,
        verdict.loss_score, verdict.norm_score, verdict.drift_score, sums.own_finite,
        counts.own_fingerprint, counts.data_differs,
    )  # fmt: skip


def _clip_factor(grad_norm: Tensor, limit: Tensor) -> Tensor:
    """What scales the gradient's norm down to the limit at most (Pascanu et al. 2013)."""
    return (limit / (grad_norm + 1e-6)).clamp(max=1.0)
