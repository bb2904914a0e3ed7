"""Python's garbage collector, run when the loop says so."""

from __future__ import annotations

import gc


class GarbageControl:
    """Collects at the same steps on all ranks while it is entered, and never in between.

    Left alone, Python collects in each process when that one has allocated much: now this rank
    pauses in the middle of a step, now another, and all wait for each. What is there at the
    beginning stays for the whole run and isn't looked at again.

    Args:
        every: steps between collections; None leaves it to Python.
    """

    def __init__(self, every: int | None) -> None:
        self._every = every

    def __enter__(self) -> None:
        if self._every is not None:
            gc.collect()
            gc.freeze()
            gc.disable()

    def __exit__(self, *exception: object) -> None:
        if self._every is not None:
            gc.enable()
            gc.unfreeze()

    def after_step(self, step: int) -> None:
        """Collect if it is time."""
        if self._every is not None and step % self._every == 0:
            gc.collect()
