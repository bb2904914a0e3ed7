"""Rehearsed failures, from the `[faults]` section."""

from __future__ import annotations

import os
import signal

from triax.training.stability.config import FaultsConfig


class FaultInjector:
    """Makes the planned failures of one process happen at their points.

    Args:
        config: the plan; empty by default.
        rank: this process's rank.
    """

    def __init__(self, config: FaultsConfig, rank: int) -> None:
        self._plan = [fault for fault in config.plan if fault.rank in (None, rank)]

    def at(self, point: str, step: int) -> None:
        """Called at every named point; strikes if the plan says so."""
        for fault in self._plan:
            if (fault.point, fault.step) == (point, step) and fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
