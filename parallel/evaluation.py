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
    """Mean cross entropy of the target tokens, weighted if they have weights, in nats, or another
    mean loss; NaN where there are none."""
    num_targets: int
    num_bytes: int | None = None
    """Of the targets' text, see `token_bytes`; None where nobody has counted them."""
    is_cross_entropy: bool = True
    """Whether the loss is one; a preference loss is none, and has no perplexity to tell."""

    @property
    def perplexity(self) -> float:
        """e to the loss; infinity where that overflows, NaN where there is no target."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """The targets' whole cross entropy in bits over the bytes of their text, to compare over
        tokenizers. A target without text, as a document's end, adds to the bits alone. None where
        there are no bytes, or nobody has counted them."""
        if not self.num_bytes or not self.num_targets or not self.is_cross_entropy:
            return None
        return self.loss * self.num_targets / math.log(2) / self.num_bytes

    def describe(self) -> str:
        """In words."""
        if self.num_targets == 0:
            return "no loss: there is no target token"
        if not self.is_cross_entropy:
            return f"loss {self.loss:.4f}"
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.4f} bits per byte"
        return f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}{bits}"


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
