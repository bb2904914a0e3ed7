"""Parameter groups by role, and their rates in both engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fleet import run_fleet
from worlds import SMALL, Case, first_update

from triax.models.description import Role, describe
from triax.models.families import model_config
from triax.training.config import OptimizerConfig
from triax.training.step.optimizer import parameter_groups

SCALES = {Role.VOCABULARY: 0.25, Role.NORM: 2.0}


def test_groups_are_by_decay_and_rate() -> None:
    table = describe(model_config(**SMALL)).parameters
    weights = {name: torch.empty(row.shape) for name, row in table.items()}
    names = {id(weight): name for name, weight in weights.items()}
    config = OptimizerConfig(lr_scales=SCALES, weight_decay=0.5)
    groups = parameter_groups(config, weights, table)
    assert [(g["weight_decay"], g["lr_scale"]) for g in groups] == [
        (0.5, 0.25), (0.5, 1.0), (0.0, 1.0), (0.0, 2.0)
    ]  # fmt: skip
    assert [names[id(p)] for p in groups[0]["params"]] == ["embedding.weight"]
    assert all("_norm" in names[id(p)] for p in groups[2]["params"])
    assert sum(len(group["params"]) for group in groups) == len(weights)


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"engine": "deepspeed"}], ids=str)
def test_a_roles_rate_is_a_share_of_the_schedules(parallel: dict[str, Any]) -> None:
    """Adam's first update is the rate for every element, wherever there is a gradient."""
    optimizer = {"lr": 1e-3, "weight_decay": 0.0, "lr_scales": SCALES}
    [found, _] = run_fleet(2, first_update, Case(parallel=parallel, optimizer=optimizer))
    assert found["embedding.weight"] == pytest.approx(0.25e-3, rel=1e-2)
    assert found["norm.weight"] == pytest.approx(2e-3, rel=1e-2)
    assert found["head.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert found["blocks.1.attention.query_norm.weight"] == pytest.approx(1e-3, rel=1e-2)
