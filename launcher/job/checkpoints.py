"""A run's checkpoints: which it goes on from, and how it saves more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from triax.checkpoint.folders import CheckpointInfo
from triax.checkpoint.huggingface import parameter_shapes
from triax.checkpoint.reading import check_weights
from triax.checkpoint.run_folder import recorded_table
from triax.checkpoint.store import CheckpointStore
from triax.checkpoint.upcycling import read_upcycled
from triax.common.errors import UserError
from triax.launcher.checks.initial_weights import compare_settings, gets_experts
from triax.launcher.config.resolved import diff_with_record, refuse_changes
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.data import Sources
from triax.launcher.job.job import Job
from triax.launcher.job.record import RecordKeeper
from triax.launcher.job.resume import ResumePoint, refuse_other_tokenizer
from triax.models.upcycling import dense_shapes
from triax.parallel.agreement import agreed
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
    initial: CheckpointInfo | None
    """Of another run, whose weights a new one begins with."""


def find_start(job: Job, sources: Sources) -> Start:
    """Look for the newest good checkpoint, else for `checkpoint.init_from`. Collective.

    Raises:
        UserError: there are checkpoints and none is good, one doesn't fit the config, or there is
            none to begin with where the config names one.
    """
    job.watchdog.beat("looking for checkpoints", 0)
    store = _make_store(job)
    store.clean()
    found = store.newest_good()
    if found is None or found.manifest is None:
        new = ResumePoint.new(*sources.known_by)
        initial = find_initial_weights(store, job.config, job.processes.control_group, job.say)
        return Start(store, new, found, initial)
    record = found.manifest.record
    _compare_with(record, job)
    resume_point = ResumePoint.of(record, *sources.known_by)
    return Start(store, resume_point, found, None)


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


def find_initial_weights(
    store: CheckpointStore,
    config: RunConfig,
    group: dist.ProcessGroup | None,
    say: Callable[[str], None],
) -> CheckpointInfo | None:
    """The checkpoint that `checkpoint.init_from` names, if it does: its tensors are the model's,
    no more and no fewer, and mean the same, or other settings are permitted. Collective.

    Raises:
        UserError: there is no such checkpoint.
    """
    path = config.checkpoint.init_from
    if path is None:
        return None
    info = store.good_at(Path(path))
    for change in agreed(lambda: _check_initial(info, config), group):
        say(f"checkpoint.init_from: other settings: {change}")
    return info


def _check_initial(info: CheckpointInfo, config: RunConfig) -> list[str]:
    assert info.manifest is not None
    try:
        changes = compare_settings(info.manifest.record, config.model, config.checkpoint)
    except UserError as error:
        raise UserError(f"checkpoint.init_from: {info.path}: {error}") from None
    is_dense = gets_experts(info.manifest.record, config.model)
    expected = dense_shapes(config.model) if is_dense else parameter_shapes(config.model)
    shapes = {f"model.{name}": shape for name, shape in expected.items()}
    check_weights(info.path, shapes, prefix="model.")
    return changes


def begin_weights(job: Job, start: Start, engine: Engine) -> None:
    """Read what a new run begins with into a new engine; nothing if that is fresh weights, or if
    the run goes on. Collective.

    Raises:
        UserError: as `CheckpointStore.load`.
    """
    if start.initial is not None:
        load_initial_weights(start.store, start.initial, engine, job.config)
        job.say(f"starting from the weights of {start.initial.path}")


def resume_weights(job: Job, start: Start, engine: Engine) -> None:
    """Read what a run goes on from into an engine; nothing if it is new. Collective.

    Raises:
        UserError: as `CheckpointStore.load`.
    """
    if start.checkpoint is not None:
        start.store.load(start.checkpoint, engine.state())
        job.say(f"going on after step {start.resume_point.state.step} from {start.checkpoint.path}")


def load_initial_weights(
    store: CheckpointStore, initial: CheckpointInfo, engine: Engine, config: RunConfig
) -> None:
    """Read another run's weights into a new engine, a dense model's into each of its experts.
    Collective."""
    assert initial.manifest is not None
    weights = {name: t for name, t in engine.state().items() if name.startswith("model.")}
    read = partial(store.load, initial)
    if gets_experts(initial.manifest.record, config.model):
        read_upcycled(read, weights, config.model, config.checkpoint.init_from_noise)
    else:
        read(weights)


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
