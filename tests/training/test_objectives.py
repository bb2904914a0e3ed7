"""Preference losses by themselves: their derivatives, pairs of unequal rows, and what is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from triax.common.tokens import IGNORE_INDEX
from triax.models.batch import Batch
from triax.parallel.engine import Counts, Engine
from triax.training.objectives.config import ObjectiveConfig
from triax.training.objectives.dpo import DirectPreference, preference_loss
from triax.training.objectives.objective import CrossEntropy


@dataclass
class Answering:
    """An engine that knows the log-probabilities."""

    log_probs_BT: Tensor

    def log_probs(self, _batches: list[Batch]) -> list[Tensor]:
        return [self.log_probs_BT.detach()]

    def sum_over_data(self, values: Tensor) -> Tensor:
        return values


def rows() -> Batch:
    """Two rows: of two pairs, and of one pair with padding behind it."""
    ids_BT = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]])
    learned = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 0, 0, 0, 0]])
    targets_BT = torch.ones(2, 10, dtype=torch.int64).masked_fill(learned == 0, IGNORE_INDEX)
    begins = F.pad(ids_BT, (1, 0), value=-1).diff(dim=1) > 0
    reference_BT = -torch.rand(2, 10).where(begins, 0) * 3
    reference_BT[1, 6] = 0  # padding
    weights_BT = learned.float() * torch.tensor([1.0, 2.0])[:, None]
    return Batch(targets_BT, targets_BT, ids_BT.int(), None, weights_BT, reference_BT)


def expected_loss(log_probs_BT: Tensor, batch: Batch, config: ObjectiveConfig) -> Tensor:
    """By the formulas, pair by pair."""
    losses = []
    means = config.length_normalised or config.loss == "ipo"
    assert batch.document_ids_BT is not None and batch.weights_BT is not None
    assert batch.reference_BT is not None
    for row, first in ((0, 0), (0, 2), (1, 0)):
        gains = []
        for document in (first, first + 1):
            here = batch.document_ids_BT[row] == document
            weights = (batch.weights_BT[row] * batch.is_target_BT[row])[here]
            gain = (weights * log_probs_BT[row][here]).sum() - batch.reference_BT[row][here].sum()
            gains.append(gain / (weights.sum() if means else 1))
        margin = gains[0] - gains[1]
        if config.loss == "ipo":
            losses.append((margin - 1 / (2 * config.beta)).square())
        else:
            share = config.label_smoothing
            agrees, differs = (
                F.logsigmoid(config.beta * margin),
                F.logsigmoid(-config.beta * margin),
            )
            losses.append(-(1 - share) * agrees - share * differs)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "ipo"}, {"length_normalised": True}, {"label_smoothing": 0.3, "beta": 2.0}],
)
def test_targets_get_the_weights_whose_cross_entropy_has_the_loss_gradient(
    settings: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    config = ObjectiveConfig(kind="dpo", **settings)
    batch = rows()
    log_probs_BT = (-torch.rand(2, 10) * 4).where(batch.is_target_BT, 0).requires_grad_()
    engine = cast(Engine, Answering(log_probs_BT))
    weighed = DirectPreference(config).weigh(engine, [batch], cast(Counts, None))
    expected = expected_loss(log_probs_BT, batch, config)
    expected.backward()
    [found] = weighed.micro_batches
    assert found.weights_BT is not None and log_probs_BT.grad is not None
    gradient_BT = -found.weights_BT * found.is_target_BT / weighed.divisor
    torch.testing.assert_close(gradient_BT, log_probs_BT.grad, rtol=1e-5, atol=1e-6)
    assert weighed.loss is not None
    torch.testing.assert_close(weighed.loss, expected.detach(), rtol=1e-5, atol=0)
    assert float(weighed.divisor) == float(weighed.extra["dpo_pairs"]) == 3
    evaluation = DirectPreference(config).evaluate(engine, [batch])
    assert evaluation.loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_rows_that_only_fill_up_are_no_pairs() -> None:
    batch = rows()
    empty = replace(batch, targets_BT=torch.full_like(batch.targets_BT, IGNORE_INDEX))
    engine = cast(Engine, Answering(torch.zeros(2, 10)))
    weighed = DirectPreference(ObjectiveConfig(kind="dpo")).weigh(
        engine, [empty], cast(Counts, None)
    )
    assert not weighed.has_targets and float(weighed.divisor) == 1
    assert weighed.loss is not None and float(weighed.loss) == 0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_derivatives(loss: Any) -> None:
    config = ObjectiveConfig(kind="dpo", loss=loss, beta=0.7, label_smoothing=0.1)
    margin_P = torch.linspace(-30, 30, 25, dtype=torch.float64, requires_grad=True)
    loss_P, slope_P = preference_loss(margin_P, config)
    [expected_P] = torch.autograd.grad(loss_P.sum(), margin_P)
    torch.testing.assert_close(slope_P.detach(), expected_P)


def test_a_batch_without_targets_has_a_gradient_of_zero() -> None:
    counts = Counts(*torch.zeros(4))
    weighed = CrossEntropy().weigh(cast(Engine, None), [], counts)
    assert float(weighed.divisor) == 1 and not weighed.has_targets and weighed.loss is None
