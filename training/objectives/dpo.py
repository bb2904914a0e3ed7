"""Direct preference optimization: the preferred answer of a pair is to gain on the other one.

Its gradient is a weighted sum of the answers' log-probabilities' gradients, and the weights are
known after a forward pass: the batch's targets get them, and the engine differentiates their cross
entropy as ever. What the reference model makes of the answers is in the batch.

Shape letters: B rows, T tokens, P pairs (those that a row may hold; some rows hold fewer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from triax.models.batch import Batch
from triax.parallel.engine import Counts, Engine
from triax.parallel.evaluation import Evaluation
from triax.training.objectives.config import ObjectiveConfig
from triax.training.objectives.objective import Weighed

_FIGURES = ("loss", "pairs", "accuracies", "chosen", "rejected", "kl", "tokens")
"""Summed over pairs (`kl` and `tokens` over answers' tokens), in this order."""


class _Judged(NamedTuple):
    """A micro-batch under the objective."""

    sums: Tensor
    """The `_FIGURES`; fp64."""
    batch: Batch
    """The same on the device; each target weighs its own weight times the loss's derivative by its
    log-probability, negated."""


class DirectPreference:
    """The objective over pairs that lie in the same row, the preferred answer first.

    Args:
        config: the `[objective]` section.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self._config = config
        self._takes_means = config.length_normalised or config.loss == "ipo"

    def weigh(self, engine: Engine, micro_batches: Sequence[Batch], counts: Counts) -> Weighed:
        del counts
        judged = self._judge(engine, micro_batches)
        sums = engine.sum_over_data(torch.stack([each.sums for each in judged]).sum(0))
        figures = dict(zip(_FIGURES, sums, strict=True))
        has_targets = figures["pairs"] > 0
        divisor = figures["pairs"].where(has_targets, 1.0).float()
        weighed = [each.batch for each in judged]
        extra = {f"dpo_{name}": value.float() for name, value in figures.items() if name != "loss"}
        loss = (figures["loss"] / divisor).float()
        return Weighed(weighed, divisor, has_targets, loss, extra)

    def evaluate(self, engine: Engine, micro_batches: Sequence[Batch]) -> Evaluation:
        judged = self._judge(engine, micro_batches)
        sums = engine.sum_over_data(torch.stack([each.sums for each in judged]).sum(0))
        figures = dict(zip(_FIGURES, sums.tolist(), strict=True))
        num_pairs = figures["pairs"]
        loss = figures["loss"] / num_pairs if num_pairs else float("nan")
        return Evaluation(loss, int(figures["tokens"]), is_cross_entropy=False)

    def _judge(self, engine: Engine, micro_batches: Sequence[Batch]) -> list[_Judged]:
        found = engine.log_probs(micro_batches)
        return [
            self._judge_batch(batch.to(log_probs_BT.device), log_probs_BT)
            for batch, log_probs_BT in zip(micro_batches, found, strict=True)
        ]

    def _judge_batch(self, batch: Batch, log_probs_BT: Tensor) -> _Judged:
        assert batch.document_ids_BT is not None and batch.reference_BT is not None
        assert batch.weights_BT is not None
        ids_BT = batch.document_ids_BT.long()
        weights_BT = batch.weights_BT.where(batch.is_target_BT, 0).double()
        num_pairs = ids_BT.shape[1] // 2 + 1  # no row holds more, and nobody waits to know

        def by_answer(values_BT: Tensor) -> Tensor:
            sums = values_BT.new_zeros(values_BT.shape[0], 2 * num_pairs, dtype=torch.float64)
            return sums.scatter_add_(1, ids_BT, values_BT.double()).view(-1, num_pairs, 2)

        totals_BP2 = by_answer(weights_BT)
        policy_BP2 = by_answer(weights_BT * log_probs_BT)
        reference_BP2 = by_answer(batch.reference_BT.where(batch.is_target_BT.any(1)[:, None], 0))
        is_pair_BP = (totals_BP2 > 0).all(-1)
        scale_BP2 = torch.ones_like(totals_BP2)
        if self._takes_means:
            scale_BP2 = 1 / totals_BP2.where(totals_BP2 > 0, 1.0)
        gain_BP2 = (policy_BP2 - reference_BP2) * scale_BP2
        margin_BP = gain_BP2[..., 0] - gain_BP2[..., 1]
        loss_BP, slope_BP = preference_loss(margin_BP, self._config)
        slope_BP = slope_BP.where(is_pair_BP, 0)
        by_answer_BP2 = torch.stack((-slope_BP, slope_BP), dim=-1) * scale_BP2
        spread_BT = by_answer_BP2.flatten(1).gather(1, ids_BT)
        rewards_BP2 = self._config.beta * gain_BP2
        difference_BP2 = (policy_BP2 - reference_BP2).where(is_pair_BP[..., None], 0)
        values = (
            loss_BP,
            torch.ones_like(loss_BP),
            (margin_BP > 0).double(),
            rewards_BP2[..., 0],
            rewards_BP2[..., 1],
        )
        sums = torch.stack(
            [
                *(value.where(is_pair_BP, 0).sum() for value in values),
                difference_BP2.sum(),
                totals_BP2.where(is_pair_BP[..., None], 0).sum(),
            ]
        )
        return _Judged(sums, replace(batch, weights_BT=(spread_BT * weights_BT).float()))


def preference_loss(margin_P: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """The loss of each pair, and its derivative by the margin.

    Args:
        margin_P: by how much more the chosen answer has gained on the reference than the other.
        config: which loss.
    """
    beta, smoothing = config.beta, config.label_smoothing
    if config.loss == "ipo":  # Azar et al. 2023, eq. 17
        off_P = margin_P - 1 / (2 * beta)
        return off_P.square(), 2 * off_P
    # Rafailov et al. 2023, eq. 7, with Mitchell 2023.
    agrees_P, differs_P = F.logsigmoid(beta * margin_P), F.logsigmoid(-beta * margin_P)
    loss_P = -(1 - smoothing) * agrees_P - smoothing * differs_P
    slope_P = beta * (smoothing * torch.sigmoid(beta * margin_P))
    return loss_P, slope_P - beta * (1 - smoothing) * torch.sigmoid(-beta * margin_P)
