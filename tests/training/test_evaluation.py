"""What is told of a validation and of a step, also where there is nothing to tell."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from triax.parallel.config import PrecisionConfig
from triax.parallel.engine import Counts, StepSums
from triax.training.records.console import Console
from triax.training.records.metrics import MetricsWriters, metrics_row
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.run_directory import RunDirectory
from triax.training.step.evaluation import mean_loss
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.readback import Readback
from triax.training.step.state import TrainState
from triax.training.step.step import StepContext, train_step


class EmptyEngine:
    """One whose batches have no target tokens."""

    device = torch.device("cpu")

    def count_targets(self, _micro_batches: object) -> Counts:
        return Counts(*torch.zeros(4))

    def forward_backward(self, _micro_batches: object, weight: torch.Tensor) -> StepSums:
        zero = torch.zeros_like(weight)
        return StepSums(zero, zero, zero + 1, {})

    def update(self, *_: object) -> None:
        pass


def test_a_step_without_targets_has_no_loss() -> None:
    engine, guard = EmptyEngine(), Guard()
    scaler = LossScaler(PrecisionConfig(), engine.device)
    result = train_step(StepContext(engine, scaler, guard, 1.0), [], 1e-3)  # type: ignore[arg-type]
    assert guard.state()["losses"] == []
    readback = Readback()
    readback.push(0, TrainState(1), 1e-3, result)
    figures = readback.drain()
    assert figures is not None and figures.result.num_targets == 0 and not figures.result.skipped
    row = metrics_row(
        figures, tokens_per_step=8, flops_per_token=1, peak_flops=None, memory_gib=0.0,
        loss_scaled=False,
    )  # fmt: skip
    assert row["loss"] is None and row["num_targets"] == 0
    assert "no targets" in Console(2, 0, 8, enabled=True)._describe(row, 1)


def test_a_validation_without_targets_has_no_perplexity(tmp_path: Path) -> None:
    evaluation = mean_loss(0.0, 0)
    assert math.isnan(evaluation.loss) and math.isnan(evaluation.perplexity)
    assert "no target" in evaluation.describe()
    console = Console(2, 0, 8, enabled=False)
    metrics_logger = MetricsLogger(
        True, RunDirectory(tmp_path), MetricsWriters([]), console, lambda _: {}
    )
    metrics_logger.evaluation(3, evaluation)
    (event,) = RunDirectory(tmp_path).rows(tmp_path / "events.jsonl")
    assert (event["loss"], event["perplexity"], event["num_targets"]) == (None, None, 0)


def test_a_mean_loss_has_its_perplexity() -> None:
    evaluation = mean_loss(6.0, 3)
    assert evaluation.loss == 2.0 and evaluation.perplexity == math.exp(2.0)
    assert evaluation.describe() == "loss 2.0000, perplexity 7.39"
    assert mean_loss(1e6, 1).perplexity == math.inf
