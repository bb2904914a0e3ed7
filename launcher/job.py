"""One process's part of a training job, from its config to its exit code."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from triax.checkpoint.agreement import agreed, on_first
from triax.checkpoint.store import CheckpointStore
from triax.common.errors import ExitCode, UserError
from triax.data.loader import Batch, Loader
from triax.data.prepare import ensure_prepared
from triax.data.source import open_sources
from triax.launcher.assembly import (
    make_boards,
    make_engine,
    make_learning_rate,
    make_loader,
    make_plan,
    make_validation,
    row_maker,
)
from triax.launcher.config import RunConfig
from triax.launcher.environment import Environment
from triax.launcher.exits import INTERRUPTED
from triax.launcher.files import diff_configs, refuse_changes, write_resolved_config
from triax.launcher.preflight import (
    check_machines,
    common_facts,
    data_facts,
    refuse_differences,
)
from triax.launcher.processes import Processes, joined, log_to_file, make_deterministic
from triax.launcher.resume import Origin, RecordKeeper
from triax.launcher.summary import closing_summary, mesh_summary, opening_summary
from triax.parallel.collectives import gather_objects, on_first_however_long
from triax.parallel.engines.protocol import Engine
from triax.parallel.float8 import require_float8
from triax.parallel.layout import Layout
from triax.training.budget import resolve_budget
from triax.training.console import Console
from triax.training.control import ControlLine, StopSignal
from triax.training.loop import Outcome, TrainLoop
from triax.training.metrics import Boards
from triax.training.outlets import Outlets
from triax.training.run_directory import RunDirectory
from triax.training.saving import Saver
from triax.training.stability.care import Care
from triax.training.stability.faults import FaultInjector
from triax.training.stability.recovery import Recovery
from triax.training.stability.stragglers import StragglerWatch
from triax.training.stability.watchdog import Watchdog, enable_flight_recorder
from triax.training.state import TrainState
from triax.training.step import StepContext

T = TypeVar("T")

log = logging.getLogger("triax.job")


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
        if environment.rank == 0:
            directory.create()
            stack.enter_context(directory.locked())
            directory.forget_exit()
        log_to_file(directory.logs / f"rank-{environment.rank}.log")
        enable_flight_recorder()
        processes = stack.enter_context(
            joined(
                environment,
                timeout_seconds=config.parallel.timeout.amount,
                save_seconds=config.checkpoint.deadline.amount,
            )
        )
        log.info("%s on %s", environment, processes.device)
        try:
            watchdog = stack.enter_context(
                Watchdog(
                    directory,
                    config.stability,
                    rank=environment.rank,
                    world_size=environment.world_size,
                    at_least=_unhurried(config.checkpoint.deadline.amount),
                )
            )
            job = Job(config, processes, directory, watchdog)
            job.check_processes(
                preflight=preflight or environment.world_size > environment.local_world_size
            )
            outcome = job.run()
        except BaseException as error:
            log.exception("the job ends with an error")
            # After a hang its cause is there already: this error only follows from it.
            if processes.is_main and not directory.exit.exists():
                directory.write_exit(*_ending(error))
            raise
        log.info("ended: %s", outcome)
    return outcome.code


def _unhurried(save_seconds: float) -> dict[str, float]:
    """What the watchdog grants to activities that have an end of their own, in seconds."""
    return {
        "preparing the data": math.inf,
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
    """Builds what a run needs, in the order in which it can fail cheaply, and runs it."""

    def __init__(
        self, config: RunConfig, processes: Processes, directory: RunDirectory, watchdog: Watchdog
    ) -> None:
        self.config = config
        self.watchdog = watchdog
        self.processes = processes
        self.directory = directory
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
        """Prepare, resume, train, report."""
        if self.config.run.deterministic:
            make_deterministic(self.processes.device)
        self.watchdog.beat("preparing the data", 0)
        self._prepare_data()
        data = self.config.data
        sources = self._together(partial(open_sources, data, self.config.model.vocab_size))
        paths = [source.path for source in data.sources]
        refuse_differences(data_facts(paths), self.processes, self.config)
        self.watchdog.beat("looking for checkpoints", 0)
        self.store.clean()
        found = self.store.newest_good()
        weights = tuple(
            (name, source.weight)
            for name, source in zip(sources, self.config.data.sources, strict=True)
        )
        if found is None or found.manifest is None:
            origin = Origin.new(weights)
        else:
            self._compare_with(found.manifest.record)
            origin = Origin.of(found.manifest.record, weights)
        self.say(opening_summary(self.config, self.budget, self.layout, self.processes.device))
        if self.processes.environment.world_size > 1:
            per_node = self.processes.environment.local_world_size
            self.say("\n".join(mesh_summary(self.layout, per_node)))
        if origin.state.step >= self.budget.num_steps:
            return self._already_finished(origin.state)
        loader = make_loader(self.config, self.layout, self.processes, sources, origin)
        validation = self._together(
            partial(make_validation, self.config, self.layout, self.processes)
        )
        self.watchdog.beat("building the model", origin.state.step)
        engine = self.faults.wrap(make_engine(self.config, self.layout, self.processes))
        if found is not None:
            self.store.load(found, engine.state())
            self.say(f"going on after step {origin.state.step} from {found.path}")
        elif self.config.checkpoint.init_from is not None:
            self._initialise_from(self.config.checkpoint.init_from, engine)
        outcome = self._train(engine, loader, validation, origin)
        # The others wait: whoever ends first with a code other than 0 has the rest stopped.
        on_first(partial(self._report, outcome), self.processes.control_group)
        return outcome

    def _together(self, step: Callable[[], T]) -> T:
        """Do it on every rank; what fails on one fails on all, with the same words."""
        values: list[T] = []
        agreed(lambda: values.append(step()), self.processes.control_group)
        return values[0]

    def _prepare_data(self) -> None:
        prepare = self.config.data.prepare
        if prepare is not None:
            on_first_however_long(
                partial(ensure_prepared, prepare, report=self.say), self.processes.control_group
            )

    def _compare_with(self, record: dict[str, Any]) -> None:
        """Show what has changed since the checkpoint; refuse what would break the run."""
        changes = diff_configs(record["config"], self.config.model_dump(mode="json"))
        refuse_changes(changes)
        for change in changes:
            self.say(f"changed since the last checkpoint: {change}")

    def _already_finished(self, state: TrainState) -> Outcome:
        self.say(
            f"this run is finished: {state.step} steps, {state.tokens:,} tokens.\n"
            f"Raise budget.tokens to go on, or choose another run.name."
        )
        outcome = Outcome(ExitCode.DONE, "already finished", state, None, 0.0)
        if self.processes.is_main:
            self._write_exit(outcome)
        return outcome

    def _report(self, outcome: Outcome) -> None:
        """Write down how the run ended, and tell it."""
        self._write_exit(outcome)
        environment = self.processes.environment
        print(closing_summary(self.config, self.directory, outcome, environment), flush=True)

    def _write_exit(self, outcome: Outcome) -> None:
        self.directory.write_exit(outcome.code, outcome.reason, step=outcome.state.step)

    def _initialise_from(self, path: str, engine: Engine) -> None:
        weights = {
            name: tensor for name, tensor in engine.state().items() if name.startswith("model.")
        }
        info = self.store.good_at(Path(path))
        self.store.load(info, weights)
        self.say(f"starting from the weights of {info.path}")

    def _train(
        self, engine: Engine, loader: Loader, validation: list[Batch], origin: Origin
    ) -> Outcome:
        config, is_main = self.config, self.processes.is_main
        keeper = RecordKeeper(config, self.layout, engine.device, origin)
        if keeper.guard_news is not None:
            self.say(keeper.guard_news)
        if is_main:
            write_resolved_config(config, self.directory.config)
            num_lost = self.directory.cut_metrics(origin.state.step)
            self.directory.append_event(
                "start",
                step=origin.state.step,
                layout=asdict(self.layout),
                num_steps_lost=num_lost,
            )
        with (
            StopSignal() as stop,
            Boards(
                make_boards(config, self.directory, origin.state.step + 1) if is_main else []
            ) as boards,
            Console(
                self.budget.num_steps,
                origin.state.step,
                self.budget.tokens_per_step,
                enabled=is_main,
            ) as console,
        ):
            outlets = Outlets(
                is_main,
                self.directory,
                boards,
                console,
                row_maker(config, self.budget, self.processes),
            )
            saver = Saver(
                self.store,
                engine,
                keeper.make,
                outlets,
                retry_seconds=config.checkpoint.retry.amount,
                max_failures=config.checkpoint.max_failures,
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
                stop=stop,
                care=self._care(engine, loader, keeper, saver, outlets),
                outlets=outlets,
            ).run(origin.state)

    def _care(
        self,
        engine: Engine,
        loader: Loader,
        keeper: RecordKeeper,
        saver: Saver,
        outlets: Outlets,
    ) -> Care:
        stability, group = self.config.stability, self.processes.control_group
        return Care(
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
                outlets,
            ),
            stragglers=StragglerWatch(
                group, stability.straggler_every, stability.straggler_factor, engine.device
            ),
            faults=self.faults,
            outlets=outlets,
            beat=self.watchdog.beat,
            group=group,
            hosts=gather_objects(self.processes.environment.hostname, group),
        )
