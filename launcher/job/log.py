"""Where a run's figures go: its directory, the writers that the config asks for, the console."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version

import torch

from triax.data.read.loader import Loader
from triax.launcher.job.forecast import forecast_writers
from triax.launcher.job.job import Job
from triax.models.counts import flops_per_token
from triax.training.records.boards import Comet, MLflow, TensorBoard, WeightsAndBiases
from triax.training.records.console import Console
from triax.training.records.hardware import device_name, peak_flops, peak_memory_gib
from triax.training.records.metrics import (
    MetricsWriter,
    MetricsWriters,
    Row,
    metrics_row,
)
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.step.readback import StepFigures
from triax.training.step.state import TrainState


@contextmanager
def opened_log(job: Job, state: TrainState, loader: Loader) -> Iterator[MetricsLogger]:
    """Log of a session that goes on from `state`, closed at the end; rank 0's alone shows it."""
    is_main, budget = job.processes.is_main, job.budget
    with (
        Console(budget.num_steps, state.step, budget.tokens_per_step, enabled=is_main) as console,
        # One that can't start must not leave the other ranks waiting for the first.
        job.together(partial(_make_writers, job, state.step + 1, console)) as writers,
    ):
        metrics_logger = MetricsLogger(
            is_main, job.directory, writers, console, _row_maker(job, loader)
        )
        metrics_logger.started(state.step, asdict(job.layout), _environment(job))
        yield metrics_logger


def _environment(job: Job) -> dict[str, str | int]:
    """Where and on what this session runs, for whoever reads its records later."""
    environment = job.processes.environment
    return {
        "triax": version("triax"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": environment.hostname,
        "device": device_name(job.processes.device),
        "launcher": environment.launcher,
        "processes": environment.world_size,
        "processes_per_node": environment.local_world_size,
    }


def _make_writers(job: Job, next_step: int, console: Console) -> MetricsWriters:
    """None but on rank 0; what older files say from `next_step` on is hidden."""
    writers: list[MetricsWriter] = []
    config, directory = job.config, job.directory
    if not job.processes.is_main:
        return MetricsWriters(writers)
    if config.metrics.tensorboard:
        writers.append(TensorBoard(directory.tensorboard, next_step))
    settings = config.model_dump(mode="json")
    if config.metrics.wandb_project is not None:
        writers.append(WeightsAndBiases(config.metrics.wandb_project, directory.path, settings))
    if config.metrics.mlflow_experiment is not None:
        writers.append(MLflow(config.metrics.mlflow_experiment, directory.path, settings))
    if config.metrics.comet_project is not None:
        writers.append(Comet(config.metrics.comet_project, directory.path, settings))
    writers += forecast_writers(job, console.say)
    writers += job.host.writers
    return MetricsWriters(writers)


def _row_maker(job: Job, loader: Loader) -> Callable[[StepFigures], Row]:
    """Turns a step's figures into a line of metrics.jsonl."""
    config, device = job.config, job.processes.device
    peak = peak_flops(device_name(device), config.precision.compute)

    def make_row(figures: StepFigures) -> Row:
        seq_len = config.data.seq_len // loader.num_pieces(figures.first_sample)
        return metrics_row(
            figures,
            tokens_per_step=job.budget.tokens_per_step,
            flops_per_token=flops_per_token(config.model, seq_len),
            peak_flops=None if peak is None else peak * job.processes.environment.world_size,
            memory_gib=peak_memory_gib(device),
            loss_scaled=config.precision.compute == "fp16",
        )

    return make_row
