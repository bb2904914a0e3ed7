"""One process's part of a training job, from its config to its exit code."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from triax.checkpoint.run_folder import keep_tokenizer, recorded_table
from triax.checkpoint.store import CheckpointStore
from triax.common.errors import ExitCode, UserError
from triax.data.read.loader import Batch, Loader
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.exits import INTERRUPTED
from triax.launcher.cluster.preflight import (
    check_machines,
    common_facts,
    refuse_differences,
)
from triax.launcher.cluster.process_group import Processes, joined, log_to_file, make_deterministic
from triax.launcher.config.resolved import diff_with_record, refuse_changes, write_resolved_config
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.assembly import (
    make_engine,
    make_learning_rate,
    make_loader,
    make_plan,
    make_validation,
    make_writers,
    row_maker,
)
from triax.launcher.job.data import late_damage, open_data, prepare_data, verify_data
from triax.launcher.job.resume import (
    RecordKeeper,
    ResumePoint,
    find_initial_weights,
    refuse_other_tokenizer,
)
from triax.launcher.job.summary import closing_summary, mesh_summary, opening_summary
from triax.parallel.agreement import agreed, on_first
from triax.parallel.collectives import gather_objects
from triax.parallel.engine import Engine
from triax.parallel.float8 import require_float8
from triax.parallel.layout import Layout
from triax.training.loop.control import ControlLine, StopSignal
from triax.training.loop.loop import Outcome, TrainLoop
from triax.training.records.console import Console
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.run_directory import RunDirectory
from triax.training.records.saving import Saver
from triax.training.stability.faults import FaultInjector
from triax.training.stability.monitor import Monitor
from triax.training.stability.recovery import Recovery
from triax.training.stability.stragglers import StragglerWatch
from triax.training.stability.watchdog import Watchdog, enable_flight_recorder
from triax.training.step.budget import resolve_budget
from triax.training.step.state import TrainState
from triax.training.step.step import StepContext

T = TypeVar("T")

log = logging.getLogger("triax.job")

_TELLING = "telling how it ended"
_ALREADY_FINISHED = "already finished"


def run(config: RunConfig, environment: Environment, *, preflight: bool = False) -> int:
    """Train as the config says, going on from the run's newest good checkpoint.

    Args:
        config: checked against this job's number of processes.
        environment: which process this is.
        preflight: measure and compare the machines first; a job of several nodes always does.

    Returns:
        The process's exit code.

    Raises:
        UserError: the data, the run directory or a checkpoint doesn't fit the config.
    """
    directory = RunDirectory(config.run_dir)
    with ExitStack() as stack:
        former = None
        if environment.rank == 0:
            directory.create()
            stack.enter_context(directory.locked())
            former = directory.read_exit()
            directory.forget_exit()
        outcome: Outcome | None = None
        try:
            log_to_file(directory.logs / f"rank-{environment.rank}.log")
            with ExitStack() as parts:
                job = _assembled(config, environment, directory, former, parts)
                job.check_processes(
                    preflight=preflight or environment.world_size > environment.local_world_size
                )
                outcome = job.run()
                job.report(outcome)
        except BaseException as error:
            if outcome is not None:  # what comes after it never changes the code
                log.exception("after the end")
                return outcome.code
            log.exception("the job ends with an error")
            # After a hang its cause is there already: this error only follows from it.
            if environment.rank == 0 and not directory.exit.exists():
                with suppress(OSError):
                    directory.write_exit(*_ending(error))
            raise
        log.info("ended: %s", outcome)
    return outcome.code


def _assembled(
    config: RunConfig,
    environment: Environment,
    directory: RunDirectory,
    former: dict[str, Any] | None,
    parts: ExitStack,
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
            directory,
            config.stability,
            rank=environment.rank,
            world_size=environment.world_size,
            at_least=_unhurried(config.checkpoint.deadline.amount),
        )
    )
    stop = parts.enter_context(StopSignal() if processes.is_main else StopSignal(_say_nothing))
    return Job(config, processes, directory, watchdog, stop, former)


def _say_nothing(_message: str) -> None:
    """Rank 0 speaks."""


def _unhurried(save_seconds: float) -> dict[str, float]:
    """What the watchdog grants to activities that have an end of their own, in seconds."""
    return {
        "preparing the data": math.inf,
        "verifying the data": math.inf,
        _TELLING: math.inf,
        "saving": 2 * save_seconds,
        "saving at last": 4 * save_seconds,
        "recovering": 2 * save_seconds,
    }


def _ending(error: BaseException) -> tuple[int, str]:
    """The exit code that an error leads to, and the reason to write down."""
    if isinstance(error, UserError):
        return ExitCode.BAD_INPUT, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    return ExitCode.FAILED, f"{type(error).__name__}: {error}"


class Job:
    """Builds what a run needs, in the order in which it can fail cheaply, and runs it.

    Args:
        stop: told of signals while there is something to save.
        former: what exit.json said before this start, on rank 0; None if nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        directory: RunDirectory,
        watchdog: Watchdog,
        stop: StopSignal,
        former: dict[str, Any] | None,
    ) -> None:
        self.config = config
        self.watchdog = watchdog
        self.stop = stop
        self.former = former
        self.processes = processes
        self.directory = directory
        self.find_damage: Callable[[], list[str]] = list
        self.layout = Layout.of(config.parallel, processes.environment.world_size)
        self.budget = resolve_budget(
            config.budget, config.model, config.batch.global_batch_size * config.data.seq_len
        )
        self.faults = FaultInjector(config.faults, processes.environment.rank, directory.path)
        swapped_to = config.parallel.offload_path
        self.store = CheckpointStore(
            directory.checkpoints,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            deadline_seconds=config.checkpoint.deadline.amount,
            group=processes.checkpoint_group,
            say=self.say,
            on_point=self.faults.at,
            staging=None if swapped_to is None else Path(swapped_to),
        )

    def say(self, message: str) -> None:
        """Print on rank 0 and log everywhere."""
        log.info("%s", message)
        if self.processes.is_main:
            print(message, flush=True)

    def check_processes(self, *, preflight: bool) -> None:
        """Refuse processes that don't fit together, and with `preflight` bad machines.

        Raises:
            UserError: it names the ranks, their hosts, and what is wrong; or a device has no fp8.
        """
        self.watchdog.beat("comparing the processes", 0)
        refuse_differences(common_facts(self.config), self.processes, self.config)
        precision = self.config.precision
        if precision.compute == "fp8":
            self._together(partial(require_float8, self.processes.device, precision.fp8_recipe))
        if preflight:
            check_machines(self.processes, self.say)

    def run(self) -> Outcome:
        """Prepare, resume, train."""
        if self.config.run.deterministic:
            make_deterministic(self.processes.device)
        self.watchdog.beat("preparing the data", 0)
        prepare_data(self.config.data, self.processes, self.say)
        data = open_data(self.config, self.processes)
        self.watchdog.beat("looking for checkpoints", 0)
        self.store.clean()
        found = self.store.newest_good()
        initial = None
        if found is None or found.manifest is None:
            resume_point = ResumePoint.new(data.identities, data.weights, data.validation_identity)
            initial = find_initial_weights(
                self.store, self.config, self.processes.control_group, self.say
            )
        else:
            self._compare_with(found.manifest.record)
            resume_point = ResumePoint.of(
                found.manifest.record, data.identities, data.weights, data.validation_identity
            )
        self.say(opening_summary(self.config, self.budget, self.layout, self.processes.device))
        if self.processes.environment.world_size > 1:
            per_node = self.processes.environment.local_world_size
            self.say("\n".join(mesh_summary(self.layout, per_node)))
        if resume_point.state.step >= self.budget.num_steps:
            if self._was_told(resume_point.state):
                return self._already_finished(resume_point)
            self.say("the run was stopped after its last step: what its end owes is done now")
        for note in resume_point.notes:
            self.say(f"data     {note}")
        validation = self._together(
            partial(make_validation, self.config, self.layout, self.processes, data.validation)
        )
        self.watchdog.beat("verifying the data", resume_point.state.step)
        verification = verify_data(self.config.data, self.processes, self.say)
        self.find_damage = partial(late_damage, verification, self.processes)
        loader = make_loader(
            self.config, self.layout, self.processes, data.sources, resume_point, verification.check
        )
        self.watchdog.beat("building the model", resume_point.state.step)
        engine = self.faults.wrap(make_engine(self.config, self.layout, self.processes))
        if found is not None:
            self.store.load(found, engine.state())
            self.say(f"going on after step {resume_point.state.step} from {found.path}")
        elif initial is not None:
            weights_only = {n: t for n, t in engine.state().items() if n.startswith("model.")}
            self.store.load(initial, weights_only)
            self.say(f"starting from the weights of {initial.path}")
        with verification:
            return self._train(engine, loader, validation, resume_point)

    def report(self, outcome: Outcome) -> None:
        """Tell how the run ended, and write it down. Collective.

        The others wait: whoever ends first with a code other than 0 has the rest stopped.
        """
        self.stop.end()
        self.watchdog.beat(_TELLING, outcome.state.step)
        on_first(partial(self._tell, outcome, self.find_damage()), self.processes.control_group)

    def _together(self, step: Callable[[], T]) -> T:
        """Do it on every rank; what fails on one fails on all, with the same words."""
        values: list[T] = []
        agreed(lambda: values.append(step()), self.processes.control_group)
        return values[0]

    def _compare_with(self, record: dict[str, Any]) -> None:
        """Show what has changed since the checkpoint; refuse what would break the run."""
        self._together(partial(refuse_other_tokenizer, record, self.config.data))
        changes = diff_with_record(recorded_table(record, "config"), self.config)
        refuse_changes(changes)
        for change in changes:
            self.say(f"changed since the last checkpoint: {change}")

    def _already_finished(self, resume_point: ResumePoint) -> Outcome:
        state, code, reason = resume_point.state, ExitCode.DONE, _ALREADY_FINISHED
        if (trouble := resume_point.trouble(self.config.stability)) is not None:
            code, reason = ExitCode.STOPPED_BY_GUARD, f"{reason}, but {trouble.reason}"
            self.say(f"this run is {reason}")
        self.say(
            f"this run is finished: {state.step} steps, {state.tokens:,} tokens.\n"
            f"Raise budget.tokens to go on, or choose another run.name."
        )
        return Outcome(code, reason, state, None, 0.0)

    def _was_told(self, state: TrainState) -> bool:
        """Whether an earlier start came to the end of its last step, and told so. Collective."""

        def look() -> bool:
            former = self.former or {}
            ends = (ExitCode.DONE, ExitCode.STOPPED_BY_GUARD)
            return former.get("code") in ends and former.get("step") == state.step

        return on_first(look, self.processes.control_group)

    def _tell(self, outcome: Outcome, damage: Sequence[str]) -> None:
        """The summary, then exit.json: if this is cut off, the next start does it again."""
        environment = self.processes.environment
        try:
            for reason in damage:
                self.say(f"warning: the run has read on beside damaged data: {reason}")
                self.directory.append_event("damaged_data", step=outcome.state.step, reason=reason)
            if not outcome.reason.startswith(_ALREADY_FINISHED):
                self.say(closing_summary(self.config, self.directory, outcome, environment))
        except (Exception, KeyboardInterrupt):
            log.exception("the summary is cut short")
        try:
            self.directory.write_exit(outcome.code, outcome.reason, step=outcome.state.step)
        except OSError as error:
            self.say(f"{self.directory.exit} can't be written: {error.strerror}")

    def _write_down(self) -> None:
        """What makes the run's folder whole: its config and its tokenizer."""
        write_resolved_config(self.config, self.directory.config)
        keep_tokenizer(self.config.data.tokenizer, self.directory.path)

    def _train(
        self, engine: Engine, loader: Loader, validation: list[Batch], resume_point: ResumePoint
    ) -> Outcome:
        config, is_main = self.config, self.processes.is_main
        keeper = RecordKeeper(config, self.layout, engine.device, resume_point)
        if keeper.guard_news is not None:
            self.say(keeper.guard_news)
        on_first(self._write_down, self.processes.control_group)
        self.stop.listen()
        with (
            make_writers(
                config, self.directory, resume_point.state.step + 1, enabled=is_main
            ) as writers,
            Console(
                self.budget.num_steps,
                resume_point.state.step,
                self.budget.tokens_per_step,
                enabled=is_main,
            ) as console,
        ):
            metrics_logger = MetricsLogger(
                is_main,
                self.directory,
                writers,
                console,
                row_maker(config, self.budget, self.processes),
            )
            metrics_logger.started(resume_point.state.step, asdict(self.layout))
            saver = Saver(
                self.store,
                engine,
                keeper.make,
                metrics_logger,
                retry_seconds=config.checkpoint.retry.amount,
                max_failures=config.checkpoint.max_failures,
                group=self.processes.control_group,
                saved_step=resume_point.state.step or None,
            )
            return TrainLoop(
                plan=make_plan(config, self.budget),
                context=StepContext(
                    engine, keeper.scaler, keeper.guard, config.optimizer.clip_norm
                ),
                loader=loader,
                validation=validation,
                learning_rate=make_learning_rate(config, self.budget),
                saver=saver,
                control=ControlLine(self.processes.control_group),
                stop=self.stop,
                monitor=self._monitor(engine, loader, keeper, saver, metrics_logger),
                metrics_logger=metrics_logger,
            ).run(resume_point.state)

    def _monitor(
        self,
        engine: Engine,
        loader: Loader,
        keeper: RecordKeeper,
        saver: Saver,
        metrics_logger: MetricsLogger,
    ) -> Monitor:
        stability, group = self.config.stability, self.processes.control_group
        return Monitor(
            config=stability,
            layout=self.layout,
            engine=engine,
            loader=loader,
            escalation=keeper.escalation,
            recovery=Recovery(
                engine,
                keeper.guard,
                keeper.escalation,
                self.store,
                saver,
                keeper.restore,
                metrics_logger,
            ),
            stragglers=StragglerWatch(
                group, stability.straggler_every, stability.straggler_factor, engine.device
            ),
            faults=self.faults,
            metrics_logger=metrics_logger,
            beat=self.watchdog.beat,
            group=group,
            hosts=gather_objects(self.processes.environment.hostname, group),
        )
