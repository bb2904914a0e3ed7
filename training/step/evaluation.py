"""Validation: the mean loss of fixed sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from triax.models.batch import Batch
from triax.parallel.engine import Engine


class Evaluation(NamedTuple):
    """What a validation found."""

    loss: float
    """Mean cross entropy of the target tokens, weighted if they have weights, in nats; NaN where
    there are none."""
    num_targets: int

    @property
    def perplexity(self) -> float:
        """e to the loss; infinity where that overflows, NaN where there is no target."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    def describe(self) -> str:
        """In words."""
        if self.num_targets == 0:
            return "no loss: there is no target token"
        return f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}"


def mean_loss(
    cross_entropy: float, num_targets: int, total_weight: float | None = None
) -> Evaluation:
    """The evaluation of a summed cross entropy; the targets weigh 1 each unless told."""
    divisor = num_targets if total_weight is None else total_weight
    return Evaluation(cross_entropy / divisor if divisor > 0 else math.nan, num_targets)


def evaluate(engine: Engine, micro_batches: Sequence[Batch]) -> Evaluation:
    """Run the model over this process's micro-batches; the result covers all processes."""
    sums = engine.evaluate(micro_batches)
    return mean_loss(float(sums.cross_entropy), int(sums.num_targets), float(sums.total_weight))
