"""The planner's forecast beside what a run measures in its first steps: every run judges it.

Memory is that of tensors: on a GPU its allocator's peak, with which the forecast without its
allowance for fragments compares; a CPU's process holds Python and its libraries besides.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from typing import Any, Literal

from triax.common.errors import UserError
from triax.launcher.job.job import Job
from triax.launcher.plan.planned import setup_of
from triax.planning.devices import GIB, find_device
from triax.planning.memory import memory_of_rank
from triax.planning.setup import Setup
from triax.planning.time import step_time, tokens_per_second
from triax.training.records.hardware import device_name

log = logging.getLogger("triax.forecast")

_FIRST = 3
"""Logged steps that are left out: they compile, and fill caches."""
_COUNT = 5
"""Steps whose median is compared."""


class ForecastWriter:
    """A `MetricsWriter` that compares once, after the first steps, and is silent from then on.

    Args:
        job: whose run is forecast.
        say: prints a line.
    """

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        device: Literal["cuda", "cpu"] = "cuda" if job.processes.device.type == "cuda" else "cpu"
        setup = setup_of(job.config, job.processes.environment.world_size, device)
        memory = memory_of_rank(setup, job.processes.environment.rank)
        self._memory_gib = (memory.total - memory.slack) / GIB
        self._tokens_per_second = _forecast_rate(setup, device_name(job.processes.device))
        self._is_cpu = setup.device == "cpu"
        self._append_event = job.directory.append_event
        self._say = say
        self._rates: list[float] = []

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """See a step's figures."""
        if len(self._rates) == _FIRST + _COUNT or "train/tokens_per_second" not in scalars:
            return
        self._rates.append(scalars["train/tokens_per_second"])
        if len(self._rates) == _FIRST + _COUNT:
            self._compare(step, scalars["train/memory_gib"])

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        """Nothing to compare."""

    def rewind(self, next_step: int) -> None:
        """Nothing to do: speed and memory aren't the steps' own."""

    def close(self) -> None:
        """Nothing to do."""

    def _compare(self, step: int, memory_gib: float) -> None:
        measured = statistics.median(self._rates[_FIRST:])
        parts = [f"memory {self._memory_gib:.3g} GiB, measured {memory_gib:.3g}"]
        if self._is_cpu:
            parts[0] += " with Python and libraries"
        if self._tokens_per_second is not None:
            parts.append(
                f"{self._tokens_per_second:,.0f} tokens/s, measured {measured:,.0f} "
                f"({measured / self._tokens_per_second - 1:+.0%})"
            )
        self._say(f"forecast: {'; '.join(parts)}")
        fields: dict[str, Any] = {
            "memory_gib": self._memory_gib,
            "measured_memory_gib": memory_gib,
            "tokens_per_second": self._tokens_per_second,
            "measured_tokens_per_second": measured,
        }
        self._append_event("forecast", step=step, **fields)


def forecast_writers(job: Job, say: Callable[[str], None]) -> list[ForecastWriter]:
    """The writer; none where no forecast can be made, which keeps no run from starting."""
    try:
        return [ForecastWriter(job, say)]
    except UserError:  # it knows no such models
        return []
    except Exception:  # a fault of the planner's is no fault of the run's
        log.warning("no forecast", exc_info=True)
        return []


def _forecast_rate(setup: Setup, name: str) -> float | None:
    """Tokens a second of all devices; None for devices that nobody has told of."""
    try:
        return tokens_per_second(setup, step_time(setup, find_device(name)))
    except UserError:
        return None
