"""What watches over a run: requests, escalation, recovery, stragglers, rehearsed faults."""

from __future__ import annotations

from triax.checkpoint.store import CheckpointStore
from triax.data.read.loader import Loader
from triax.launcher.job.job import Job
from triax.launcher.job.record import RecordKeeper
from triax.parallel.collectives import gather_objects
from triax.parallel.engine import Engine
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.saving import Saver
from triax.training.stability.control import ControlLine
from triax.training.stability.monitor import Monitor
from triax.training.stability.recovery import Recovery
from triax.training.stability.stragglers import StragglerWatch


def make_monitor(
    job: Job,
    engine: Engine,
    loader: Loader,
    keeper: RecordKeeper,
    store: CheckpointStore,
    saver: Saver,
    metrics_logger: MetricsLogger,
) -> Monitor:
    """The monitor of all other parts. Collective."""
    stability, group = job.config.stability, job.processes.control_group
    return Monitor(
        config=stability,
        parallel=job.config.parallel,
        layout=job.layout,
        engine=engine,
        loader=loader,
        escalation=keeper.escalation,
        recovery=Recovery(
            engine, keeper.guard, keeper.escalation, store, saver, keeper.restore,
            loader.changes_between, metrics_logger,
        ),
        control=ControlLine(group),
        stop=job.stop,
        stragglers=StragglerWatch(
            group, stability.straggler_every, stability.straggler_factor, engine.device
        ),
        faults=job.faults,
        metrics_logger=metrics_logger,
        beat=job.watchdog.beat,
        group=group,
        hosts=gather_objects(job.processes.environment.hostname, group) or [],
    )  # fmt: skip
