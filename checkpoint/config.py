"""The `[checkpoint]` section: when to save, what to keep. Imports no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt

from triax.common.paths import PathField
from triax.common.quantities import (
    Duration,
    DurationOrAutoField,
    PatienceField,
    TimeField,
    Unit,
)
from triax.common.section import NonNegativeFp32, Section


class CheckpointConfig(Section):
    """When checkpoints are written, and which are kept. The run's last step is always saved."""

    independent: ClassVar[frozenset[str]] = frozenset(
        {"every", "process_fails_every", "keep", "asynchronous", "deadline", "retry"}
        | {"max_failures"}
    )
    every: DurationOrAutoField | None = Duration(500, Unit.STEPS)
    """Steps, tokens or time between saves. `"auto"`: the time that loses least, by what saves cost
    here and by:"""
    process_fails_every: TimeField = Duration(50_000 * 3600, Unit.SECONDS)
    """Mean time between failures that one process's device and share of a node cause; a job of N
    fails N times as often. The default is Llama 3's 16,384 GPUs: 466 failures in 54 days."""
    keep: PositiveInt = 3
    """The newest so many stay; the newest good one is never removed."""
    asynchronous: bool = True
    """Write in the background while training goes on."""
    deadline: PatienceField = Duration(1800, Unit.SECONDS)
    """A save that takes longer counts as failed."""
    retry: TimeField = Duration(30, Unit.SECONDS)
    """After a failed save the next attempt comes so soon, then after twice as long each time."""
    max_failures: PositiveInt = 10
    """So many failed saves in a row stop the run; until then training goes on."""
    init_from: PathField | None = None
    """A checkpoint whose weights (alone) a new run starts from. Its tensors must be those of
    `[model]`, and its recorded settings too. Not read when the run goes on."""
    init_from_other_settings: bool = False
    """Start from it even where it was trained with settings that give its weights another meaning,
    such as `rope_theta` or the number of heads."""
    init_from_noise: NonNegativeFp32 = 0.0
    """Where it is a dense model and this one has experts: so much of the weights that a new model
    begins with is added to each expert's copy."""
