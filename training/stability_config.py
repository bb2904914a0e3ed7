"""The `[stability]` and `[faults]` sections. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from triax.common.quantities import MAX_SECONDS, Duration, PatienceField, Unit
from triax.common.section import PositiveFp32, Section


class StabilityConfig(Section):
    """`[stability]`: what is done about steps, processes and machines that go wrong.

    docs/stability.md says where the defaults come from.
    """

    spike_guard: bool = True
    """Refuse updates whose loss or gradient norm is far above the recent ones. Those that are
    not finite are refused always."""
    window: int = Field(128, ge=16, le=1 << 16)
    """Accepted steps that the guard compares with; a quarter of them before its first word. They
    are sorted at each step."""
    threshold: PositiveFp32 = 8.0
    """How many robust standard deviations above the median are too far."""
    max_consecutive_skips: PositiveInt = 20
    """So many skipped updates within twice as many steps lead to a rollback."""
    max_rollbacks: NonNegativeInt = 5
    """Of the whole run; the next one stops it with exit code 3."""
    rollback_margin: NonNegativeInt = 10
    """A rollback goes to a checkpoint at least so many steps before the trouble."""
    rollback_lr_factor: float = Field(1.0, gt=0, le=1)
    """The learning rate is multiplied by this after a rollback, for:"""
    rollback_lr_steps: PositiveInt = 200
    on_shift: Literal["stop", "accept"] = "stop"
    """When the loss stays at another level after a rollback too: stop, or learn that level."""
    adaptive_clip_percentile: float | None = Field(None, gt=0, lt=100)
    """Clip to this percentile of the window's gradient norms (AutoClip), and to clip_norm."""
    locate_nonfinite: bool = False
    """Repeat the forward pass of a non-finite step to name the first module with such a value."""

    checksum_every: PositiveInt | None = 500
    """Steps between comparisons of replicas (parallel.replicate, or ZeRO 0)."""
    straggler_every: PositiveInt = 50
    """Steps between comparisons of the processes' own times."""
    straggler_factor: float = Field(1.5, gt=1)
    """A process that makes the step so many times as long as without it is named."""

    hang_after: PatienceField = Duration(120, Unit.SECONDS)
    """The watchdog never calls less than this a hang."""
    hang_factor: float = Field(10.0, gt=1)
    """A hang is so many times the longest of the recent steps (or evaluations, or saves)."""
    hang_after_first: PatienceField = Duration(1800, Unit.SECONDS)
    """The limit for what this session does for the first time: start, compile, load."""


POINTS = Literal[
    "before-update", "after-update",
    "save-staged", "save-shard-written", "save-before-fsync", "save-before-manifest",
    "save-before-rename", "save-done",
]  # fmt: skip
"""Where a fault can strike: around a step, or at the stages of a save."""

_USUAL_POINTS = {"disk-full": "save-shard-written", "flip-file": "save-done"}


class Fault(Section):
    """One failure to rehearse; docs/stability.md has the table."""

    kind: Literal[
        "kill", "exception", "hang", "freeze", "slow", "disk-full", "flip-file", "flip-weight",
        "nan-gradient", "corrupt-batch",
    ] = "kill"  # fmt: skip
    step: PositiveInt
    """The step, counted from 1, that is running (or whose checkpoint is being saved).
    `nan-gradient` and `corrupt-batch` come with that step's data, wherever it is read."""
    until: PositiveInt | None = None
    """`slow`, `disk-full`, `nan-gradient` and `corrupt-batch` go on until this step (inclusive).
    The others strike once in a run, also when it is started again."""
    rank: NonNegativeInt | None = None
    """None means every rank."""
    point: POINTS | None = None
    """None means where that kind usually strikes."""
    seconds: float = Field(1.0, gt=0, le=MAX_SECONDS)
    """`slow`: how long each time."""

    @property
    def where(self) -> str:
        """The point at which it strikes."""
        return self.point or _USUAL_POINTS.get(self.kind, "before-update")

    def covers(self, step: int) -> bool:
        """Whether a step is among its steps."""
        return self.step <= step <= (self.until or self.step)


class FaultsConfig(Section):
    """`[faults]`: failures to rehearse, each at a chosen step and rank; none unless planned."""

    plan: tuple[Fault, ...] = Field(())
