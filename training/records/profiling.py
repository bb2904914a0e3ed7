"""A window of steps under torch's profiler, as `[profile]` asks: traces for Perfetto, and on CUDA a
snapshot of the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from triax.training.config import ProfileConfig

log = logging.getLogger("triax.profiling")

_MOST_ALLOCATIONS = 1_000_000
"""Events that a memory snapshot keeps: some hundred bytes each."""


class Profiling:
    """Profiles the config's steps on this process, if it is one of the config's ranks.

    What can't be written is lost, and training goes on. A window that the run's end or a rollback
    cuts short is written as far as it came.

    Args:
        config: which steps, and which ranks.
        rank: this process's.
        folder: the run's `profile/`.
        device: that computes.
        tell: called with the files of a window that was written.
    """

    def __init__(
        self,
        config: ProfileConfig,
        rank: int,
        folder: Path,
        device: torch.device,
        tell: Callable[[list[Path]], None],
    ) -> None:
        self._window = config.window if rank in config.ranks else None
        self._rank = rank
        self._folder = folder
        self._device = device
        self._keeps_memory = config.memory and device.type == "cuda"
        self._tell = tell
        self._profiler: profile | None = None
        self._steps: list[int] = []

    def before_step(self, step: int) -> None:
        """Begin with the window's first step, or with the first that is taken of it; end where a
        rollback leads out of it."""
        if self._window is None or step not in self._window:
            self.close()
            return
        if self._profiler is None:
            self._begin()
        self._steps.append(step)

    def after_step(self, step: int) -> None:
        """End with the window's last step."""
        if self._profiler is not None and self._window is not None and step >= self._window[-1]:
            self.close()

    def close(self) -> None:
        """Write what was profiled so far."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        steps, self._steps = self._steps, []
        try:
            profiler.stop()
            files = [self._write_trace(profiler, steps)]
            if self._keeps_memory:
                files.append(self._write_memory(steps))
        except Exception:  # a full disk, or a profiler that fails: no reason to lose the run
            log.warning("the profile of steps %s is lost", steps, exc_info=True)
        else:
            self._tell(files)
        finally:
            self._forget_memory()

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        try:
            if self._keeps_memory:
                torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
            self._profiler = profile(activities=activities, record_shapes=True, acc_events=True)
            self._profiler.start()
        except Exception:  # such as another profiler at work
            log.warning("no profile", exc_info=True)
            self._profiler, self._window = None, None
            self._forget_memory()

    def _forget_memory(self) -> None:
        """Its history makes every allocation of the steps to come slower."""
        if self._keeps_memory:
            with suppress(Exception):  # as in `close`
                torch.cuda.memory._record_memory_history(enabled=None)

    def _write_trace(self, profiler: profile, steps: list[int]) -> Path:
        path = self._folder / f"trace-{self._name(steps)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            profiler.export_chrome_trace(str(partial))
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return path

    def _write_memory(self, steps: list[int]) -> Path:
        path = self._folder / f"memory-{self._name(steps)}.pickle"
        torch.cuda.memory._dump_snapshot(str(path))
        return path

    def _name(self, steps: list[int]) -> str:
        return f"rank-{self._rank}-steps-{min(steps)}-{max(steps)}"
