"""One process's part of a training job, from its config to its exit code."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.preflight import (
    check_machines,
    common_facts,
    refuse_differences,
)
from triax.launcher.cluster.process_group import joined, log_to_file, make_deterministic
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.build import train
from triax.launcher.job.data import patience_with
from triax.launcher.job.ending import TELLING, ending_by, report
from triax.launcher.job.job import Host, Job
from triax.launcher.job.precision import with_precision
from triax.parallel.float8 import require_float8
from triax.training.loop.loop import Outcome
from triax.training.records.local_files import LocalFiles
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.control import StopSignal
from triax.training.stability.watchdog import Watchdog, enable_flight_recorder

log = logging.getLogger("triax.job")

HOST = Host()
"""None: the process is the run's alone."""


def run(
    config: RunConfig, environment: Environment, *, preflight: bool = False, host: Host = HOST
) -> int:
    """Train as the config says, from the run's newest good checkpoint on; returns the exit code.

    Args:
        config: checked against this job's number of processes.
        environment: which process this is.
        preflight: measure and compare the machines first; a job of several nodes always does.
        host: what a program that trains within its own process brings along.

    Raises:
        UserError: the data, the run directory or a checkpoint doesn't fit the config.
    """
    directory = RunDirectory(config.run_dir)
    files = local_files(config, directory, environment)
    with ExitStack() as stack:
        former = None
        if environment.rank == 0:
            directory.create()
            stack.enter_context(directory.locked())
            former = directory.read_exit()
            directory.forget_exit()
        outcome: Outcome | None = None
        try:
            log_to_file(files)
            with ExitStack() as parts:
                job = _joined(config, environment, files, former, parts, host)
                _check_processes(job, preflight=preflight)
                if config.run.deterministic:
                    make_deterministic(job.processes.device)
                outcome, find_damage = train(job)
                report(job, outcome, find_damage)
        except BaseException as error:
            if outcome is not None:  # what comes after it never changes the code
                log.exception("after the end")
                return outcome.code
            log.exception("the job ends with an error")
            files.gather()
            # After a hang its cause is there already: this error only follows from it.
            if environment.rank == 0 and not directory.exit.exists():
                with suppress(OSError):
                    directory.write_exit(*ending_by(error))
            raise
        log.info("ended: %s", outcome)
        if files.speaks:
            files.gather()
    return outcome.code


def local_files(config: RunConfig, directory: RunDirectory, environment: Environment) -> LocalFiles:
    """Where a process writes its log, stacks and heartbeats."""
    return LocalFiles.of(
        directory,
        rank=environment.rank,
        local_rank=environment.local_rank,
        node_rank=environment.node_rank,
        world_size=environment.world_size,
        local_world_size=environment.local_world_size,
        local_dir=config.run.local_dir,
        per_rank=config.run.files_per_rank,
    )


def _joined(
    config: RunConfig,
    environment: Environment,
    files: LocalFiles,
    former: dict[str, Any] | None,
    parts: ExitStack,
    host: Host,
) -> Job:
    """The job, with the others joined and the watchdog awake for as long as `parts` is open."""
    enable_flight_recorder()
    processes = parts.enter_context(
        joined(
            environment,
            timeout_seconds=config.parallel.timeout.amount,
            save_seconds=config.checkpoint.deadline.amount,
            run_dir=config.run_dir,
        )
    )
    log.info("%s on %s", environment, processes.device)
    watchdog = parts.enter_context(
        Watchdog(
            files,
            config.stability,
            world_size=environment.world_size,
            at_least=_unhurried(config.checkpoint.deadline.amount) | patience_with(config.data),
            end=host.end,
        )
    )
    own = StopSignal() if processes.is_main else StopSignal(_say_nothing)
    stop = parts.enter_context((processes.is_main and host.stop) or own)
    say = _say if processes.is_main else log.info
    config = with_precision(config, processes, files.directory.config, say)
    return Job.of(config, processes, files.directory, watchdog, stop, former, host)


def _say(line: str) -> None:
    log.info(line)
    print(line, flush=True)


def _say_nothing(_message: str) -> None:
    """Rank 0 speaks."""


def _unhurried(save_seconds: float) -> dict[str, float]:
    """What the watchdog grants to activities that have an end of their own, in seconds."""
    return {
        "preparing the data": math.inf,
        "verifying the data": math.inf,
        TELLING: math.inf,
        "saving": 2 * save_seconds,
        "saving at last": 4 * save_seconds,
        "recovering": 2 * save_seconds,
    }


def _check_processes(job: Job, *, preflight: bool) -> None:
    """Refuse processes that don't fit together; with `preflight` or several nodes, bad machines.

    Raises:
        UserError: it names the ranks, their hosts, and what is wrong; or a device has no fp8.
    """
    job.watchdog.beat("comparing the processes", 0)
    refuse_differences(common_facts(job.config), job.processes, job.config)
    precision = job.config.precision
    if precision.compute == "fp8":
        job.together(partial(require_float8, job.processes.device, precision.fp8_recipe))
    environment = job.processes.environment
    if preflight or environment.world_size > environment.local_world_size:
        check_machines(job.processes, job.say)
