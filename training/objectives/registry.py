"""The objectives by their names in a config."""

from __future__ import annotations

from collections.abc import Callable

from triax.training.objectives.config import ObjectiveConfig
from triax.training.objectives.dpo import DirectPreference
from triax.training.objectives.objective import CrossEntropy, Objective


def _cross_entropy(_config: ObjectiveConfig) -> Objective:
    return CrossEntropy()


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "pretrain": _cross_entropy,
    "sft": _cross_entropy,
    "dpo": DirectPreference,
}
"""By `objective.kind`. What `pretrain` and `sft` learn differs in the data's weights alone."""
