"""Validation: the mean loss of fixed sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from triax.parallel.engines.protocol import Engine, MicroBatch


class Evaluation(NamedTuple):
    """What a validation found."""

    loss: float
    """Mean cross entropy of the target tokens, in nats."""
    num_targets: int

    @property
    def perplexity(self) -> float:
        """e to the loss; infinity where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(engine: Engine, micro_batches: Sequence[MicroBatch]) -> Evaluation:
    """Run the model over this process's micro-batches; the result covers all processes."""
    cross_entropy, num_targets = engine.evaluate(micro_batches)
    count = int(num_targets)
    return Evaluation(float(cross_entropy) / max(count, 1), count)
