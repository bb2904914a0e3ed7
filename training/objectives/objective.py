"""What a step minimises, as a strategy: the step itself is the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from triax.models.batch import Batch
from triax.parallel.engine import Counts, Engine
from triax.parallel.evaluation import Evaluation, evaluate


@dataclass(frozen=True)
class Weighed:
    """A global batch, ready for its backward pass."""

    micro_batches: Sequence[Batch]
    """This process's part. The gradient is that of their targets' cross entropy, each times its
    own weight, over `divisor`."""
    divisor: Tensor
    """Over all processes; fp32 scalar, not 0."""
    has_targets: Tensor
    """Whether there is anything to learn from."""
    loss: Tensor | None = None
    """What is reported and judged, fp32 scalar over all processes; None: the cross entropy over
    the divisor."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Figures, as in `StepResult.extra`."""


class Objective(Protocol):
    """Gives a batch's targets their weights. Collective; nothing waits for the device."""

    def weigh(self, engine: Engine, micro_batches: Sequence[Batch], counts: Counts) -> Weighed:
        """The batch as the engine is to differentiate it.

        Args:
            micro_batches: this process's part of the global batch, as it was read.
            counts: what all processes have read.
        """

    def evaluate(self, engine: Engine, micro_batches: Sequence[Batch]) -> Evaluation:
        """What a validation tells, over all processes."""


class CrossEntropy:
    """The mean over all targets, each by its own weight: pretraining and fine-tuning."""

    def weigh(self, engine: Engine, micro_batches: Sequence[Batch], counts: Counts) -> Weighed:
        del engine
        has_targets = counts.total_weight > 0
        # A batch without any target has a gradient of zero, not of 0/0.
        return Weighed(micro_batches, counts.total_weight.where(has_targets, 1.0), has_targets)

    def evaluate(self, engine: Engine, micro_batches: Sequence[Batch]) -> Evaluation:
        return evaluate(engine, micro_batches)
