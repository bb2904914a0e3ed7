"""Low-rank adapters (Hu et al. 2021, LoRA), as a model's config names them. Imports no torch.

Beside a layer's weight W stand two factors, and it computes `W x + scale * B A x`. The factors are
trained, and all else of the model is frozen.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from triax.common.section import PositiveFp32, Section

Target = Literal["query", "key", "value", "output", "gate", "up", "down"]
_PARTS: dict[Target, str] = {
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "output": "attention",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}
"""Of a block, where a target lies."""
ALL_TARGETS: tuple[Target, ...] = tuple(_PARTS)
ATTENTION_TARGETS: tuple[Target, ...] = ("query", "key", "value", "output")
FACTORS = ("lora_a", "lora_b")
"""Names of A (rank, in features) and B (out features, rank) within a layer."""


class LoraConfig(Section):
    """`[model.lora]`: adapters, which alone are trained."""

    rank: Annotated[int, Field(gt=0, le=4096)]
    alpha: PositiveFp32
    """What the factors' product is multiplied by, times the rank: `alpha / rank`;"""
    rslora: bool = False
    """or `alpha / sqrt(rank)` (Kalajdzievski 2023)."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, strict=False)] = ALL_TARGETS
    """Layers that get factors in each block: attention's and the feed-forward layer's. Experts,
    shared ones and their router get none."""

    @field_validator("targets")
    @classmethod
    def _in_order(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(target for target in ALL_TARGETS if target in targets)

    @property
    def scale(self) -> float:
        """What the factors' product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def target_of(module: str) -> Target | None:
    """What a module of a model is among the targets, by its name; None for what can be none."""
    parts = module.split(".")
    if len(parts) != 4:
        return None
    return next((each for each, where in _PARTS.items() if parts[2:] == [where, each]), None)
