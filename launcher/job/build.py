"""A run, built of its five parts: data, engine, checkpoints, monitor, log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from triax.checkpoint.run_folder import keep_tokenizer
from triax.launcher.config.resolved import write_resolved_config
from triax.launcher.job.checkpoints import (
    Start,
    begin_weights,
    find_start,
    make_saver,
    resume_weights,
)
from triax.launcher.job.data import (
    Sources,
    find_sources,
    late_damage,
    make_data,
    tokenizer_here,
    verified,
)
from triax.launcher.job.ending import already_finished
from triax.launcher.job.engine import make_engine, make_objective
from triax.launcher.job.job import Job
from triax.launcher.job.log import opened_log
from triax.launcher.job.monitor import make_monitor
from triax.launcher.job.record import RecordKeeper
from triax.launcher.job.reference import with_reference
from triax.launcher.job.summary import tell_opening
from triax.parallel.agreement import on_first
from triax.training.loop.loop import Outcome, Plan, RunData, TrainLoop
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.saving import Saver
from triax.training.stability.monitor import Monitor
from triax.training.step.schedule import learning_rate
from triax.training.step.state import TrainState
from triax.training.step.step import StepContext

FindDamage = Callable[[], list[str]]
"""Reasons that verification beside the steps has found by now, on any rank. Collective."""


@dataclass(frozen=True)
class Run:
    """What trains, ready to: five parts, what they do when, and where they go on."""

    data: RunData
    engine: StepContext
    checkpoints: Saver
    monitor: Monitor
    log: MetricsLogger
    plan: Plan
    state: TrainState
    find_damage: FindDamage

    def train(self) -> Outcome:
        """Train to the budget's end, or an earlier one."""
        loop = TrainLoop(
            self.plan, self.data, self.engine, self.checkpoints, self.monitor, self.log
        )
        return loop.run(self.state)


def train(job: Job) -> tuple[Outcome, FindDamage]:
    """Find the data and where the run goes on; if anything is left to do, build the rest and train.

    Collective.

    Returns:
        How it ended, and what finds the damage that nobody has met while it read.

    Raises:
        UserError: the data or a checkpoint doesn't fit the config.
    """
    sources = find_sources(job)
    start = find_start(job, sources)
    tell_opening(job)
    if (outcome := already_finished(job, start.resume_point)) is not None:
        return outcome, list
    with ExitStack() as parts:
        run = build(job, sources, start, parts)
        return run.train(), run.find_damage


def build(job: Job, sources: Sources, start: Start, parts: ExitStack) -> Run:
    """Build the five parts, in the order in which they can fail cheaply. Collective.

    Args:
        parts: closes what has been opened.

    Raises:
        UserError: a shard is damaged, or a checkpoint's tensors aren't this run's.
    """
    config, state = job.config, start.resume_point.state
    verification = verified(job, start.resume_point)
    job.watchdog.beat("building the model", state.step)
    engine = job.faults.wrap(make_engine(config, job.layout, job.processes))
    begin_weights(job, start, engine)
    sources = with_reference(job, sources, start, engine)
    data = make_data(job, sources, start.resume_point, verification)
    resume_weights(job, start, engine)
    parts.enter_context(verification)
    keeper = RecordKeeper(config, job.layout, engine.device, start.resume_point, start.base)
    if keeper.guard_news is not None:
        job.say(keeper.guard_news)
    on_first(partial(_write_down, job), job.processes.control_group)
    job.stop.listen()
    log = parts.enter_context(opened_log(job, state, data.loader))
    saver = make_saver(job, start, engine, keeper, log)
    return Run(
        data=data,
        engine=StepContext(
            engine,
            keeper.scaler,
            keeper.guard,
            config.optimizer.clip_norm,
            make_objective(config),
        ),
        checkpoints=saver,
        monitor=make_monitor(job, engine, data.loader, keeper, start.store, saver, log),
        log=log,
        plan=make_plan(job),
        state=state,
        find_damage=partial(late_damage, verification, job.processes),
    )


def _write_down(job: Job) -> None:
    """What makes the run's folder whole: its config and its tokenizer."""
    write_resolved_config(job.config, job.directory.config)
    keep_tokenizer(tokenizer_here(job.config.data), job.directory.path)


def make_plan(job: Job) -> Plan:
    """What the loop does when."""
    config, budget, every = job.config, job.budget, job.config.checkpoint.every
    num_processes = job.processes.environment.world_size
    fails_every = config.checkpoint.process_fails_every.amount / num_processes
    return Plan(
        num_steps=budget.num_steps,
        global_batch_size=config.batch.global_batch_size,
        seq_len=config.data.seq_len,
        learning_rate=partial(
            learning_rate,
            peak=config.optimizer.lr,
            schedule=config.schedule,
            total_tokens=budget.num_tokens,
            tokens_per_step=budget.tokens_per_step,
        ),
        save_every=None if every == "auto" else every,
        evaluate_every=config.eval.every,
        log_every=config.metrics.every,
        collect_garbage_every=config.run.collect_garbage_every,
        seconds_between_failures=fails_every if every == "auto" else None,
        started=job.watchdog.started,
        evaluation_share=config.eval.budget,
    )
