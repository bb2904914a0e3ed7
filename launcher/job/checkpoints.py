"""A run's checkpoints: which it goes on from, and how it saves more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from triax.checkpoint.folders import CheckpointInfo
from triax.checkpoint.run_folder import recorded_table
from triax.checkpoint.store import CheckpointStore
from triax.launcher.config.resolved import diff_with_record, refuse_changes
from triax.launcher.job.data import Sources
from triax.launcher.job.initial_weights import (
    Initial,
    find_base,
    find_initial_weights,
    load_initial_weights,
)
from triax.launcher.job.job import Job
from triax.launcher.job.record import RecordKeeper
from triax.launcher.job.resume import ResumePoint, refuse_other_tokenizer
from triax.parallel.engine import Engine
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.saving import Saver


@dataclass(frozen=True)
class Start:
    """What a session begins with."""

    store: CheckpointStore
    resume_point: ResumePoint
    checkpoint: CheckpointInfo | None
    """Of the run itself; the resume point is its record's."""
    initial: Initial | None
    """Of another run, whose weights a new one begins with."""
    base: CheckpointInfo | None = None
    """Whose weights the run's adapters stand beside, if it trains adapters."""


def find_start(job: Job, sources: Sources) -> Start:
    """Look for the newest good checkpoint, else for `checkpoint.init_from`. Collective.

    Raises:
        UserError: there are checkpoints and none is good, one doesn't fit the config, or there is
            none to begin with where the config names one.
    """
    job.watchdog.beat("looking for checkpoints", 0)
    store, group = _make_store(job), job.processes.control_group
    store.clean()
    found = store.newest_good()
    if found is None or found.manifest is None:
        new = ResumePoint.new(*sources.known_by)
        initial = find_initial_weights(store, job.config, group, job.say)
        return Start(store, new, found, initial, None if initial is None else initial.base)
    record = found.manifest.record
    _compare_with(record, job)
    resume_point = ResumePoint.of(record, *sources.known_by)
    base = find_base(store, found, job.config, group)
    return Start(store, resume_point, found, None, base)


def _make_store(job: Job) -> CheckpointStore:
    config = job.config.checkpoint
    swapped_to = job.config.parallel.offload_path
    return CheckpointStore(
        job.directory.checkpoints,
        keep=config.keep,
        asynchronous=config.asynchronous,
        deadline_seconds=config.deadline.amount,
        group=job.processes.checkpoint_group,
        say=job.say,
        on_point=job.faults.at,
        staging=None if swapped_to is None else Path(swapped_to),
    )


def _compare_with(record: dict[str, Any], job: Job) -> None:
    """Show what has changed since the checkpoint; refuse what would break the run."""
    job.together(partial(refuse_other_tokenizer, record, job.config.data))
    changes = diff_with_record(recorded_table(record, "config"), job.config)
    refuse_changes(changes)
    for change in changes:
        job.say(f"changed since the last checkpoint: {change}")


def begin_weights(job: Job, start: Start, engine: Engine) -> None:
    """Read what a new run begins with into a new engine; nothing if that is fresh weights, or if
    the run goes on. The weights beside adapters are read in any case. Collective.

    Raises:
        UserError: as `CheckpointStore.load`.
    """
    if start.initial is not None:
        load_initial_weights(start.store, start.initial, engine, job.config)
        job.say(f"starting from the weights of {start.initial.path}")
    elif start.base is not None:
        start.store.load(start.base, engine.frozen_state())


def resume_weights(job: Job, start: Start, engine: Engine) -> None:
    """Read what a run goes on from into an engine; nothing if it is new. Collective.

    Raises:
        UserError: as `CheckpointStore.load`.
    """
    if start.checkpoint is not None:
        start.store.load(start.checkpoint, engine.state())
        job.say(f"going on after step {start.resume_point.state.step} from {start.checkpoint.path}")


def make_saver(
    job: Job, start: Start, engine: Engine, keeper: RecordKeeper, metrics_logger: MetricsLogger
) -> Saver:
    """Saves the engine's state with the keeper's record."""
    config = job.config.checkpoint
    return Saver(
        start.store,
        engine,
        keeper.make,
        metrics_logger,
        retry_seconds=config.retry.amount,
        max_failures=config.max_failures,
        group=job.processes.control_group,
        saved_step=start.resume_point.state.step or None,
    )
