"""From logits to a token.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triax.common.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The filters apply in this order, each to what the former left."""

    repetition_penalty: float = 1.0
    """Logits of tokens that stand in the text are divided by it where they are positive, else
    multiplied (Keskar et al. 2019, CTRL)."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only so many of the likeliest tokens, and what is as likely as the last; None for all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens that are at least so likely as this share of the likeliest's probability
    (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        """Raises:
        UserError: a value makes no sense.
        """
        for name, is_valid, expected in (
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("temperature", 0 <= self.temperature < math.inf, "of at least 0"),
            ("top_k", self.top_k is None or self.top_k > 0, "of at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not is_valid:
                option = name.replace("_", "-")
                value = getattr(self, name)
                raise UserError(f"--{option}: expected a number {expected}, got {value}")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def draw(
        self, logits_BV: Tensor, seen_BV: Tensor | None, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each row.

        Args:
            logits_BV: fp32, finite.
            seen_BV: bool: what stands in each row's text; needed for a repetition penalty alone.
            generators: one a row, on the CPU.

        Returns:
            Tokens (B,), int64, and their log-probabilities under the model's own distribution
            (B,), fp32.
        """
        log_probs_BV = logits_BV.log_softmax(-1)
        if seen_BV is not None and self.repetition_penalty != 1:
            penalised_BV = torch.where(
                logits_BV > 0,
                logits_BV / self.repetition_penalty,
                logits_BV * self.repetition_penalty,
            )
            logits_BV = torch.where(seen_BV, penalised_BV, logits_BV)
        tokens_B = logits_BV.argmax(-1) if self.is_greedy else self._sample(logits_BV, generators)
        return tokens_B, log_probs_BV.gather(-1, tokens_B[:, None])[:, 0]

    def _sample(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        # Nothing overflows upwards, and fp64 holds every temperature that Python can name.
        below_best_BV = (logits_BV.double() - logits_BV.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            smallest_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            below_best_BV = below_best_BV.masked_fill(logits_BV < smallest_B1, -math.inf)
        probs_BV = below_best_BV.softmax(-1)
        if self.top_p < 1:
            probs_BV = _nucleus(probs_BV, self.top_p)
        if self.min_p > 0:
            least_B1 = self.min_p * probs_BV.amax(-1, keepdim=True)
            probs_BV = probs_BV.masked_fill(probs_BV < least_B1, 0)
        rows = zip(probs_BV.cpu(), generators, strict=True)
        drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in rows]
        return torch.cat(drawn).to(logits_BV.device)


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Without the least likely tokens that aren't needed to reach a probability."""
    sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = sorted_BV.masked_fill(before_BV >= top_p, 0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)
