"""How often a checkpoint is worth its time, by how often a job fails. Imports no torch.

Young (1974), Daly (2006, eq. 37): an interval costs its save, and a failure on average half of an
interval of lost work and a restart. All times in seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from triax.common.quantities import format_seconds

_FIRST, _MOST = 600.0, 3600.0
"""Until a save has been measured; and at most, since rollbacks need checkpoints too."""


def best_interval(save: float, between_failures: float) -> float:
    """Seconds of work between saves that cost `save` seconds each."""
    if save >= 2 * between_failures:
        return between_failures
    share = save / (2 * between_failures)
    return max(
        save, math.sqrt(2 * save * between_failures) * (1 + math.sqrt(share) / 3 + share / 9) - save
    )


def effective_share(interval: float, save: float, restart: float, between_failures: float) -> float:
    """Of the wall time, what trains: Daly's whole formula (2006, eq. 20) for failures at random."""
    spent = (
        between_failures
        * math.exp(min(restart / between_failures, 700.0))
        * math.expm1(min((interval + save) / between_failures, 700.0))
    )
    return interval / spent


class LearningTimer:
    """Asks for a save at the interval that fits what saves have cost so far.

    Args:
        between_failures: mean seconds between two failures of the job.
        clock: seconds.
    """

    def __init__(
        self, between_failures: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._between_failures = between_failures
        self._clock = clock
        self._last = clock()
        self.period = min(_FIRST, best_interval(10.0, between_failures))

    def is_due(self) -> bool:
        """Whether the interval has passed since the start or the last `restart`."""
        return self._clock() - self._last >= self.period

    def restart(self) -> None:
        """Begin the interval anew."""
        self._last = self._clock()

    def learn(self, save: float, restart: float) -> str | None:
        """Take over what a save has cost the steps; returns what to say where much changes.

        Args:
            restart: from a process's start to its first step.
        """
        former, save = self.period, max(save, 0.01)
        self.period = min(_MOST, best_interval(save, self._between_failures))
        if 0.8 < self.period / former < 1.25:
            return None
        share = effective_share(self.period, save, restart, self._between_failures)
        return (
            f'checkpoint.every = "auto": every {format_seconds(self.period)} from here on, since '
            f"a save costs {save:.2f} s, a start {format_seconds(restart)}, and a failure is "
            f"expected every {format_seconds(self._between_failures)}: {share:.1%} of the time "
            "trains"
        )
