"""A part of the time that something may take."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeShare:
    """Measures what runs within it, from the time that it is made on; a context manager.

    Args:
        share: the most of all time that it is to take; None for any.
    """

    def __init__(self, share: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share = share
        self._clock = clock
        self._made = self._began = clock()
        self.seconds = 0.0
        """All that was spent so far."""

    @property
    def is_overspent(self) -> bool:
        """Whether more of the time has been spent than the share."""
        if self._share is None:
            return False
        return self.seconds > self._share * (self._clock() - self._made)

    def __enter__(self) -> TimeShare:
        self._began = self._clock()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.seconds += self._clock() - self._began
