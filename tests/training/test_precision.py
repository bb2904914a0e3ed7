"""The loss scale of fp16."""

from __future__ import annotations

from typing import Any

import torch

from triax.parallel.config import PrecisionConfig
from triax.training.step.precision import LossScaler

CPU = torch.device("cpu")


def scaler(**options: Any) -> LossScaler:
    return LossScaler(PrecisionConfig(**options), CPU)


def test_it_halves_at_an_overflow_and_doubles_after_a_clean_window() -> None:
    found = scaler(compute="fp16", initial_loss_scale=64.0, loss_scale_window=2)
    scales = []
    for overflowed in (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0):
        found.update(torch.tensor(overflowed))
        scales.append(found.scale.item())
    assert scales == [32, 32, 64, 64, 32, 32, 64]


def test_it_goes_on_from_a_saved_state() -> None:
    first = scaler(compute="fp16", initial_loss_scale=64.0, loss_scale_window=2)
    first.update(torch.tensor(1.0))
    first.update(torch.tensor(0.0))
    second = scaler(compute="fp16", loss_scale_window=2)
    second.load(first.state())
    for each in (first, second):
        each.update(torch.tensor(0.0))
    assert second.scale.item() == first.scale.item() == 64


def test_a_run_that_changes_to_fp16_begins_with_the_initial_scale() -> None:
    before, after = scaler(compute="bf16"), scaler(compute="fp16", initial_loss_scale=64.0)
    assert before.scale.item() == 1
    after.load(before.state())
    assert after.scale.item() == 64
    before.load(after.state())
    assert before.scale.item() == 1
