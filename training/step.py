"""One training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from triax.parallel.engines.protocol import Engine, MicroBatch
from triax.training.precision import LossScaler
from triax.training.stability.guard import Guard


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
    """Mean cross entropy of the target tokens, in nats."""
    grad_norm: Tensor
    """L2 norm of the whole gradient, before clipping."""
    num_targets: Tensor
    skipped: Tensor
    """1 if the guard refused the update."""
    loss_scale: Tensor


def train_step(context: StepContext, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
    """Forward and backward over the global batch, verdict, clipped update.

    The loss is the sum over target tokens divided by their global number, so it doesn't depend on
    how the batch is divided. Nothing here waits for the device.

    Args:
        context: engine, scaler, guard and clipping.
        micro_batches: this process's part of the global batch.
        lr: the learning rate of this step.
    """
    engine, scale = context.engine, context.scaler.scale
    # A batch without any target has a gradient of zero, not of 0/0.
    num_targets = engine.count_targets(micro_batches).clamp(min=1)
    sums = engine.forward_backward(micro_batches, weight=scale / num_targets)
    loss, grad_norm = sums.cross_entropy / num_targets, sums.grad_norm / scale
    skip = context.guard.judge(loss, grad_norm)
    engine.update(lr, _clip_factor(grad_norm, context.clip_norm) / scale, skip)
    context.scaler.update(skip)
    return StepResult(loss, grad_norm, num_targets, skip, scale)


def _clip_factor(grad_norm: Tensor, clip_norm: float | None) -> Tensor:
    """What scales the gradient's norm down to `clip_norm` at most (Pascanu et al. 2013)."""
    if clip_norm is None:
        return torch.ones_like(grad_norm)
    return (clip_norm / (grad_norm + 1e-6)).clamp(max=1.0)
