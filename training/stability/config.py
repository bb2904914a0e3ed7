"""The `[stability]` and `[faults]` sections. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from triax.common.section import Section


class StabilityConfig(Section):
    """`[stability]`: what is done about steps that would harm the weights."""

    max_consecutive_skips: PositiveInt = 20
    """So many skipped updates in a row end the run with exit code 3."""


class Fault(Section):
    """One failure. Each happens once per process, when its point is reached."""

    kind: Literal["kill"] = "kill"
    """`kill`: SIGKILL to the process itself."""
    step: PositiveInt
    """The step, counted from 1, that is running (or whose checkpoint is being saved)."""
    rank: NonNegativeInt | None = None
    """None means every rank."""
    point: Literal[
        "before-update", "after-update",
        "save-staged", "save-shard-written", "save-before-fsync", "save-before-manifest",
        "save-before-rename", "save-done",
    ] = "before-update"  # fmt: skip


class FaultsConfig(Section):
    """`[faults]`: failures to rehearse, each at a chosen step and rank; none unless planned."""

    plan: tuple[Fault, ...] = Field(())
