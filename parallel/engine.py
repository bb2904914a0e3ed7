"""What an engine does for the training loop.

An engine owns the spread model and its optimizer. All of its methods are collective: every
process of the job calls them in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from triax.models.batch import Batch

MakeOptimizer = Callable[[Mapping[str, Tensor]], Optimizer]
"""Builds the optimizer over parameters by name; given to the engine by training."""


class FlaggedOptimizer(Protocol):
    """One whose step waits for nothing: what to do it reads from scalars on the device."""

    grad_scale: Tensor | None
    """Gradients are divided by it."""
    found_inf: Tensor | None
    """All stays as it is where this isn't 0."""

    def step(self) -> object: ...


def set_rates(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate, times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def takes_flags(optimizer: Optimizer) -> TypeGuard[FlaggedOptimizer]:
    """Whether the optimizer is such a one, as torch's fused ones are; they mark it themselves."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


@runtime_checkable
class CopyingOptimizer(Protocol):
    """One that writes what main params stand for too, and makes its state before the first step."""

    copies: Mapping[Tensor, Tensor]
    """By parameter: tensors that are given its new values in their own dtype."""

    def make_state(self) -> None:
        """Make what the first step would make, so that a checkpoint can be read into it."""


RMSNorm = Callable[[Tensor, Tensor, float], Tensor]
"""RMS-normalises x (..., D) and multiplies by a weight (D,), with an epsilon; given by training."""


class Counts(NamedTuple):
    """What the processes have read for a step; fp32 scalars on the engine's device."""

    num_targets: Tensor
    """Over all processes, whatever they weigh."""
    total_weight: Tensor
    """Of those targets; their number where batches have no weights. The loss is divided by it."""
    data_differs: Tensor
    """1 if processes that should work on the same samples have read others."""
    own_fingerprint: Tensor
    """Of what this process has read, a whole number; 0 where nobody else reads it. Not reduced."""


class StepSums(NamedTuple):
    """What a step amounts to over all processes; fp32 on the engine's device, scalars but for
    `extra`."""

    cross_entropy: Tensor
    """Summed over the step's target tokens, each times its own weight."""
    grad_norm: Tensor
    """L2 norm of the whole gradient, which still carries the loss weight's scale."""
    own_finite: Tensor
    """1 if this process's own objective was finite, with all its terms; not reduced."""
    extra: dict[str, Tensor]
    """What else the model's modules handed up, by name: see `models/layers/output.py`. Scalars, or
    tensors with a row a layer; summed like the cross entropy. The same names on every process."""


class EvaluationSums(NamedTuple):
    """What a validation amounts to over all processes; fp64 scalars on the engine's device."""

    cross_entropy: Tensor
    num_targets: Tensor
    total_weight: Tensor
    """As in `Counts`."""


class Engine(Protocol):
    """Runs a spread model's passes and updates."""

    @property
    def device(self) -> torch.device:
        """Where the engine computes."""

    def count_targets(self, micro_batches: Sequence[Batch]) -> Counts:
        """Count the step's target tokens, and compare what the processes have read."""

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> StepSums:
        """Accumulate the gradient of `weight` x the loss summed over all processes' targets, each
        times its own weight if the batches have weights.

        Args:
            micro_batches: this process's part of the global batch.
            weight: fp32 scalar: loss scale over the global weight of the targets. Where these have
                weights of both signs, as in preference losses, it is the caller's own divisor.
        """

    def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
        """Scale the gradients, take the optimizer's step, and drop the gradients.

        Args:
            lr: learning rate.
            gradient_factor: fp32 scalar that the gradients are multiplied by (clipping, and the
                inverse of the loss scale).
            skip: fp32 scalar; 1 leaves weights, moments and step counts as they are. It may lie
                on the device: the host waits for it only where the optimizer can't read it there.
        """

    def evaluate(self, micro_batches: Sequence[Batch]) -> EvaluationSums:
        """The loss without gradients."""

    def log_probs(self, batches: Sequence[Batch]) -> list[Tensor]:
        """The log-probability of every target, without gradients.

        Args:
            batches: as for `evaluate`: equally many, of equal shapes, on every process.

        Returns:
            For each batch fp32 (B, T) on the device, 0 where there is no target, whatever the
            targets weigh. The processes of a pipeline, context and tensor group all get those of
            the batches that they share.
        """

    def likeliest(self, batches: Sequence[Batch]) -> list[Tensor]:
        """The likeliest token at every target, without gradients.

        Args:
            batches: as for `log_probs`; what the targets are doesn't matter.

        Returns:
            For each batch int64 (B, T), as `log_probs` gives its values.
        """

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Add up what each process has made of the samples that it reads; those who read the same
        ones count together once.

        Args:
            values: fp64 on the device, alike on all who read the same.
        """

    def locate_non_finite(self, micro_batches: Sequence[Batch]) -> str | None:
        """Where this process's forward pass first has a value that is not finite.

        The pass is run once more, without gradients.

        Returns:
            A parameter's or a module's name; None if all is finite.
        """

    def state(self) -> dict[str, Tensor]:
        """Weights as `model.NAME` and optimizer state as `optimizer.NAME.KEY`, for checkpoints.

        The tensors are the live ones, DTensors or `FlatShard` where they are sharded: writing into
        them, as loading a checkpoint does, changes the engine's state.
        """

    def frozen_state(self) -> dict[str, Tensor]:
        """Weights that aren't trained as `model.NAME`, live likewise; {} where all are."""
