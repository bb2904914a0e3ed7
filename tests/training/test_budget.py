"""A run's length: whole steps, and the Chinchilla convention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.counts import num_non_embedding_parameters, num_parameters
from triax.models.families import model_config
from triax.training.config import BudgetConfig
from triax.training.step.budget import chinchilla_tokens, resolve_budget

MODEL = model_config(preset="mini-10m")


@settings(deadline=None)
@given(tokens=st.integers(1, 10**15), per_step=st.integers(1, 10**8))
def test_a_budget_is_rounded_down_to_whole_steps(tokens: int, per_step: int) -> None:
    config = BudgetConfig(tokens=tokens)
    if tokens < per_step:
        with pytest.raises(UserError, match="less than one step"):
            resolve_budget(config, MODEL, per_step)
        return
    budget = resolve_budget(config, MODEL, per_step)
    assert budget.num_tokens == budget.num_steps * per_step
    assert 0 <= tokens - budget.num_tokens < per_step


@pytest.mark.parametrize(
    ("convention", "count"),
    [("total", num_parameters), ("non-embedding", num_non_embedding_parameters)],
)
def test_chinchilla_counts_parameters_by_the_stated_convention(
    convention: Literal["total", "non-embedding"], count: Callable[[ModelConfig], int]
) -> None:
    config = BudgetConfig(parameters=convention, tokens_per_parameter=20.0)
    assert chinchilla_tokens(config, MODEL) == 20 * count(MODEL)
    assert resolve_budget(config, MODEL, 4096).num_steps == 20 * count(MODEL) // 4096


def test_llama3_8b_s_budget_is_that_of_its_published_size() -> None:
    model = model_config(preset="llama3-8b")
    assert chinchilla_tokens(BudgetConfig(), model) == 20 * 8_030_261_248


def test_an_endless_budget_is_the_user_s_mistake() -> None:
    with pytest.raises(UserError, match="tokens_per_parameter"):
        resolve_budget(BudgetConfig(tokens_per_parameter=1e305), MODEL, 4096)
    with pytest.raises(ValidationError, match="expected"):
        BudgetConfig(tokens=10**400)


def test_chinchilla_counts_the_experts_that_a_token_passes() -> None:
    """Counted by hand: two of eight, all else once."""
    model = model_config(preset="mini-moe-20m")
    experts = 6 * 8 * 3 * 256 * 512
    active = num_parameters(model) - experts + experts * 2 // 8
    assert chinchilla_tokens(BudgetConfig(tokens_per_parameter=20.0), model) == 20 * active
