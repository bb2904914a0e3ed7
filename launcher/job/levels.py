"""Whether a changed config moves the loss to another level, for which the guard begins anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from triax.common.errors import UserError
from triax.launcher.config.resolved import diff_with_record
from triax.launcher.config.run_config import RunConfig
from triax.training.config import BudgetConfig, ScheduleConfig
from triax.training.step.budget import resolve_budget
from triax.training.step.schedule import learning_rate

_PATHS = (
    "objective",
    "optimizer.lr",
    "schedule",
    "budget",
    "batch.global_batch_size",
    "data.seq_len",
    "data.mask_documents",
)
"""What decides the rate, and how much text a step learns from; other sources begin a new blend."""


def moves_the_level(old: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether the loss and its noise may differ from those of a recorded config by design."""
    return any(
        change.path == path or change.path.startswith(f"{path}.")
        for change in diff_with_record(old, config)
        for path in _PATHS
    )


def describe_rates(old: Mapping[str, Any], config: RunConfig, tokens: int) -> str:
    """What the learning rate was in the last step and will be in the next, in a clause.

    Args:
        old: the recorded config.
        config: of now.
        tokens: trained on up to now.
    """
    per_step = config.batch.global_batch_size * config.data.seq_len
    now = _rate(config.optimizer.lr, config.schedule, config.budget, config, tokens + per_step)
    try:
        was = _rate(
            old["optimizer"]["lr"],
            ScheduleConfig.model_validate(old["schedule"]),
            BudgetConfig.model_validate(old["budget"]),
            config,
            tokens,
        )
    except (KeyError, ValidationError, UserError):  # an earlier version's words
        return f"the learning rate will be {now:.3g}"
    return f"the learning rate was {was:.3g} and will be {now:.3g}"


def _rate(
    lr: float,
    schedule: ScheduleConfig,
    budget: BudgetConfig,
    config: RunConfig,
    tokens: int,
) -> float:
    """Of the step that brings the run to so many tokens."""
    per_step = config.batch.global_batch_size * config.data.seq_len
    total = resolve_budget(budget, config.model, per_step).num_tokens
    return learning_rate(
        tokens, peak=lr, schedule=schedule, total_tokens=total, tokens_per_step=per_step
    )
