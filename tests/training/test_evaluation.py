"""What is told of a validation and of a step, also where there is nothing to tell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triax.common.tokens import IGNORE_INDEX
from triax.data.prepare.token_bytes import text_bytes
from triax.data.read.source import Window
from triax.models.batch import Batch
from triax.parallel.config import PrecisionConfig
from triax.parallel.engine import Counts, StepSums
from triax.parallel.evaluation import Evaluation, mean_loss
from triax.training.evaluation.builtin import continuation
from triax.training.evaluation.evaluator import Findings
from triax.training.records import console, metrics
from triax.training.records.console import Console
from triax.training.records.metrics import MetricsWriters, Shown, metrics_row
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.run_directory import RunDirectory
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.readback import Readback
from triax.training.step.state import TrainState
from triax.training.step.step import StepContext, StepResult, train_step


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


class MostlyPadding:
    """Windows with a conversation of seven tokens, and padding."""

    num_windows = 8

    def window(self, index: int) -> Window:
        tokens, ids = np.zeros(33, np.int64), np.ones(33, np.int32)
        tokens[:7], ids[:7] = 1 + index, 0
        return Window(tokens, ids, num_tokens=7)


def test_nothing_is_asked_of_padding() -> None:
    task = continuation(MostlyPadding(), 8)  # type: ignore[arg-type]
    for number, question in enumerate(task.questions):
        assert set(question.context) == {1 + number}
        assert len(question.context) == 4 and 0 not in sum(question.choices, ())


def test_a_validation_without_targets_has_no_perplexity(tmp_path: Path) -> None:
    evaluation = mean_loss(0.0, 0)
    assert math.isnan(evaluation.loss) and math.isnan(evaluation.perplexity)
    assert "no target" in evaluation.describe()
    silent = Console(2, 0, 8, enabled=False)
    metrics_logger = MetricsLogger(
        True, RunDirectory(tmp_path), MetricsWriters([]), silent, lambda _: {}
    )
    metrics_logger.evaluation(3, Findings({"validation": evaluation}), 0.5)
    (event,) = RunDirectory(tmp_path).rows(tmp_path / "events.jsonl")
    assert (event["loss"], event["perplexity"], event["num_targets"]) == (None, None, 0)


def test_a_mean_loss_has_its_perplexity() -> None:
    evaluation = mean_loss(6.0, 3)
    assert evaluation.loss == 2.0 and evaluation.perplexity == math.exp(2.0)
    assert evaluation.describe() == "loss 2.0000, perplexity 7.39"
    assert mean_loss(1e6, 1).perplexity == math.inf


def test_a_preference_loss_has_no_perplexity() -> None:
    evaluation = Evaluation(0.6931, 3, num_bytes=9, is_cross_entropy=False)
    assert evaluation.describe() == "loss 0.6931" and evaluation.bits_per_byte is None
    found = Findings({"validation": evaluation}).record()
    assert found["loss"] == 0.6931 and found["perplexity"] is None


def step_result(extra: dict[str, torch.Tensor]) -> StepResult[torch.Tensor]:
    scalars = torch.arange(1.0, len(StepResult._fields))
    return StepResult._make([*scalars, extra])


def test_extras_reach_the_host_and_are_shown_by_a_line_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load, entropy = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor(6.0)
    readback = Readback()
    readback.push(0, TrainState(1), 1e-3, step_result({"load": load, "entropy": entropy}))
    figures = readback.push(0, TrainState(2), 1e-3, step_result({}))
    assert figures is not None
    assert torch.equal(figures.result.extra["load"], load)
    assert torch.equal(figures.result.extra["entropy"], entropy)
    assert figures.result[:-1] == tuple(range(1, len(StepResult._fields)))
    shown = (
        Shown("max_load", "load", lambda value, _: float(value.max()), "load {:.1f}"),
        Shown("entropy", "entropy", lambda value, step: float(value) / step.num_targets),
        Shown("absent", "absent", lambda value, _: float(value)),
    )
    monkeypatch.setattr(metrics, "SHOWN", shown)
    monkeypatch.setattr(console, "SHOWN", shown)
    row = metrics_row(
        figures, tokens_per_step=8, flops_per_token=1, peak_flops=None, memory_gib=0.0,
        loss_scaled=False,
    )  # fmt: skip
    assert row["max_load"] == 3.0 and row["entropy"] == 2.0 and "absent" not in row
    assert "load 3.0" in Console(2, 0, 8, enabled=True)._describe(row, 1)
    last = readback.drain()
    assert last is not None and last.result.extra == {}


def test_bytes_are_counted_only_where_all_targets_weigh_the_same() -> None:
    sizes, targets_BT = np.array([1, 10, 100]), torch.tensor([[0, 2, IGNORE_INDEX]])
    batch = Batch(torch.zeros_like(targets_BT), targets_BT)
    assert text_bytes(sizes, [batch, batch]) == 202
    equal, unequal = (
        replace(batch, weights_BT=torch.tensor([weights])) for weights in ((1.0, 1, 0), (1.0, 2, 0))
    )
    assert text_bytes(sizes, [batch, equal]) == 202
    assert text_bytes(sizes, [batch, unequal]) is None
