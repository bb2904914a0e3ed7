"""Validation: the mean loss of fixed sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from triax.parallel.engine import Engine, MicroBatch


class Evaluation(NamedTuple):
    """What a validation found."""

    loss: float
    """Mean cross entropy of the target tokens, in nats; NaN where there are none."""
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


def mean_loss(cross_entropy: float, num_targets: int) -> Evaluation:
    """The evaluation of a summed cross entropy."""
    return Evaluation(cross_entropy / num_targets if num_targets else math.nan, num_targets)


def evaluate(engine: Engine, micro_batches: Sequence[MicroBatch]) -> Evaluation:
    """Run the model over this process's micro-batches; the result covers all processes."""
    cross_entropy, num_targets = engine.evaluate(micro_batches)
    return mean_loss(float(cross_entropy), int(num_targets))
