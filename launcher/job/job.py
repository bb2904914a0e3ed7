"""A job as one of its processes knows it, before anything of its run is built."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.parallel.agreement import agreed
from triax.parallel.layout import Layout
from triax.training.records.metrics import MetricsWriter
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.control import StopSignal
from triax.training.stability.faults import FaultInjector
from triax.training.stability.watchdog import Watchdog
from triax.training.step.budget import Budget, resolve_budget

T = TypeVar("T")

log = logging.getLogger("triax.job")


@dataclass(frozen=True)
class Host:
    """What a program that trains within its own process brings along; nothing by itself."""

    stop: StopSignal | None = None
    """Rank 0's: where requests to stop come from; None: from the process's signals."""
    writers: Sequence[MetricsWriter] = ()
    """Shown every logged step and every validation, on rank 0."""
    end: Callable[[int], None] = os._exit
    """Ends the process after a hang."""


@dataclass(frozen=True)
class Job:
    """What all builders of a run's parts are given.

    Attributes:
        config: checked against this job's number of processes.
        processes: this one among the others.
        directory: where the run's files go.
        layout: of this session.
        budget: the run's length.
        watchdog: told what goes on.
        stop: told of signals while there is something to save.
        faults: rehearsed failures; none unless they are planned.
        former: what exit.json said before this start, on rank 0; None if nothing.
        host: what the program around it brings.
    """

    config: RunConfig
    processes: Processes
    directory: RunDirectory
    layout: Layout
    budget: Budget
    watchdog: Watchdog
    stop: StopSignal
    faults: FaultInjector
    former: dict[str, Any] | None
    host: Host = field(default_factory=Host)

    @staticmethod
    def of(
        config: RunConfig,
        processes: Processes,
        directory: RunDirectory,
        watchdog: Watchdog,
        stop: StopSignal,
        former: dict[str, Any] | None,
        host: Host,
    ) -> Job:
        """The job of a config on these processes."""
        environment = processes.environment
        return Job(
            config,
            processes,
            directory,
            Layout.of(config.parallel, environment.world_size),
            resolve_budget(
                config.budget, config.model, config.batch.global_batch_size * config.data.seq_len
            ),
            watchdog,
            stop,
            FaultInjector(config.faults, environment.rank, directory.path),
            former,
            host,
        )

    def say(self, message: str) -> None:
        """Print on rank 0 and log everywhere."""
        log.info("%s", message)
        if self.processes.is_main:
            print(message, flush=True)

    def together(self, step: Callable[[], T]) -> T:
        """Do it on every rank; what fails on one fails on all, with the same words.

        Raises:
            UserError: it did on a rank.
            RankError: anything else did.
        """
        return agreed(step, self.processes.control_group)
