"""Training within the caller's process: in a notebook, a script, a test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from triax.common.errors import UserError
from triax.common.output import no_output
from triax.launcher.api.configs import Config, checked_config
from triax.launcher.api.runs import Run
from triax.launcher.cluster.launchers import discover
from triax.launcher.job.job import Host
from triax.launcher.job.run import run
from triax.training.stability.control import StopSignal


@dataclass(frozen=True)
class Progress:
    """What a callback is shown: a logged step, or a validation."""

    step: int
    figures: Mapping[str, float]
    """As in metrics.jsonl; of a validation `validation/loss` and others of that prefix."""
    stop: Callable[[], None]
    """Asks the run to save and stop after the step that it is at; calling `train` again goes on."""


Callback = Callable[[Progress], object]


def train(
    config: Config, *, callbacks: Sequence[Callback] = (), quiet: bool = False, **overrides: Any
) -> Run:
    """Train in this process, going on where the run stopped before, and return what it has left.

    Signals stay as they are (an interrupt raises KeyboardInterrupt, and what the last checkpoint
    has is kept), nothing exits, and runs can follow each other. A call takes the whole process:
    torch's process group is one a process, so runs can't be trained at the same time in threads.
    For several processes use `triax train`.

    Args:
        config: a TOML file, its tables, or a RunConfig.
        callbacks: each is called on every logged step and every validation, a step behind the
            device. What one raises stops the run, which saves, and is raised then.
        quiet: print nothing.
        overrides: sections with the values to change: `optimizer={"lr": 1e-3}`.

    Returns:
        The run; `ending["code"]` is 0 when its budget is used up, 3 when the guard stopped it, 75
        when a callback did.

    Raises:
        ConfigError: with every problem of the config.
        UserError: the data, the run directory or a checkpoint doesn't fit it.
    """
    environment = discover()
    if environment.launcher != "single":
        raise UserError(
            f"triax.train trains in one process, and this is one of {environment.launcher}'s: "
            "use `triax train` or `python -m triax.launcher.train` there"
        )
    if torch.distributed.is_initialized():
        raise UserError(
            "torch.distributed is in use in this process; end that first "
            "(torch.distributed.destroy_process_group())"
        )
    checked = checked_config(config, overrides, world_size=1)
    watcher = _Watcher(callbacks)
    with ExitStack() as stack:
        stack.enter_context(_own_logging())
        stack.enter_context(_own_determinism())
        if quiet:
            stack.enter_context(no_output())
        run(checked, environment, host=Host(watcher.stop, [watcher], end=watcher.after_hang))
    if watcher.error is not None:
        raise watcher.error
    return Run(checked.run_dir)


class _NoSignals(StopSignal):
    """Stops when it is asked to, and leaves signals to the program around it."""

    def listen(self) -> None:
        pass


class _Watcher:
    """The callbacks as one `MetricsWriter`, and what they ask for."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.stop = _NoSignals()
        self.error: Exception | None = None
        self._callbacks = callbacks

    def log(self, step: int, scalars: dict[str, float]) -> None:
        figures = {name.removeprefix("train/"): value for name, value in scalars.items()}
        progress = Progress(step, figures, self._request)
        for callback in self._callbacks if self.error is None else ():
            try:
                callback(progress)
            except Exception as error:
                self.error = error
                self._request()
                return

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        """Callbacks are given figures; `Run.events` has the samples."""

    def rewind(self, next_step: int) -> None:
        """Callbacks are shown a step again when the run comes to it again."""

    def close(self) -> None:
        """Nothing is open."""

    def after_hang(self, code: int) -> None:
        """A program that trains is not ended for it: events.jsonl tells of the hang."""

    def _request(self) -> None:
        self.stop.request("a callback")


@contextmanager
def _own_logging() -> Iterator[None]:
    """The run's log file is closed afterwards, and the logger as it was."""
    logger = logging.getLogger("triax")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    try:
        yield
    finally:
        for handler in [each for each in logger.handlers if each not in handlers]:
            logger.removeHandler(handler)
            handler.close()
            if isinstance(handler, logging.StreamHandler):
                handler.stream.close()
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _own_determinism() -> Iterator[None]:
    """`run.deterministic` holds for the run alone."""
    former = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former)
