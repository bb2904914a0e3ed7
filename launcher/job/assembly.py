"""The parts of a run, each made from its section of the config."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial

from triax.data.read.loader import Batch, Loader, validation_batches
from triax.data.read.sampler import Sampler
from triax.data.read.source import Source
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.resume import ResumePoint
from triax.models.counts import flops_per_token
from triax.models.description import describe
from triax.parallel.engine import Engine
from triax.parallel.engines import ENGINES
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh
from triax.training.loop.loop import Plan
from triax.training.records.hardware import device_name, peak_flops, peak_memory_gib
from triax.training.records.metrics import (
    MetricsWriter,
    MetricsWriters,
    Row,
    TensorBoard,
    WeightsAndBiases,
    metrics_row,
)
from triax.training.records.run_directory import RunDirectory
from triax.training.step.apex import chosen, find_fused_rms_norm
from triax.training.step.budget import Budget
from triax.training.step.optimizer import optimizer_maker
from triax.training.step.readback import StepFigures
from triax.training.step.schedule import learning_rate


def make_loader(
    config: RunConfig,
    layout: Layout,
    processes: Processes,
    sources: Sequence[Source],
    resume_point: ResumePoint,
    before_batch: Callable[[], None],
) -> Loader:
    """Reads this process's part of every global batch."""
    blend = resume_point.blend
    return Loader(
        dict(zip(blend.keys, sources, strict=True)),
        Sampler(config.run.seed, blend.phases, blend.num_windows()),
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=layout.data_rank(processes.environment.rank),
        dp_size=layout.data_parallel,
        mask_documents=config.data.mask_documents,
        prefetch=config.data.prefetch,
        pin_memory=processes.device.type == "cuda",
        before_batch=before_batch,
    )


def make_validation(
    config: RunConfig, layout: Layout, processes: Processes, source: Source | None
) -> list[Batch]:
    """This process's part of every validation; empty if there is no data for it.

    Raises:
        UserError: it holds a token outside the vocabulary.
    """
    if source is None:
        return []
    batches = validation_batches(
        source,
        config.eval.batches * config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=layout.data_rank(processes.environment.rank),
        dp_size=layout.data_parallel,
        mask_documents=config.data.mask_documents,
        pin_memory=processes.device.type == "cuda",
    )
    return list(batches)


def make_engine(config: RunConfig, layout: Layout, processes: Processes) -> Engine:
    """The engine that the config names, with freshly initialised weights."""
    module, name = ENGINES[config.parallel.engine].split(":")
    engine: Callable[..., Engine] = getattr(importlib.import_module(module), name)
    return engine(
        config.model,
        build_mesh(layout, processes.device.type),
        config.parallel,
        precision=config.precision,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
        make_optimizer=optimizer_maker(
            config.optimizer,
            config.precision,
            describe(config.model).parameters,
            is_native=config.parallel.engine == "native",
        ),
        rms_norm=chosen(
            config.optimizer,
            find_fused_rms_norm,
            can_take=config.parallel.engine != "native",
            on_cuda=processes.device.type == "cuda",
        ),
    )


def make_plan(config: RunConfig, budget: Budget) -> Plan:
    """What the loop does when."""
    return Plan(
        num_steps=budget.num_steps,
        global_batch_size=config.batch.global_batch_size,
        seq_len=config.data.seq_len,
        save_every=config.checkpoint.every,
        evaluate_every=config.eval.every,
        log_every=config.metrics.every,
        collect_garbage_every=config.run.collect_garbage_every,
    )


def make_learning_rate(config: RunConfig, budget: Budget) -> Callable[[int], float]:
    """The rate of the step that brings the run to so many tokens."""
    return partial(
        learning_rate,
        peak=config.optimizer.lr,
        schedule=config.schedule,
        total_tokens=budget.num_tokens,
        tokens_per_step=budget.tokens_per_step,
    )


def row_maker(
    config: RunConfig, budget: Budget, processes: Processes
) -> Callable[[StepFigures], Row]:
    """Turns a step's figures into a line of metrics.jsonl."""
    device = processes.device
    peak = peak_flops(device_name(device), config.precision.compute)

    def make_row(figures: StepFigures) -> Row:
        return metrics_row(
            figures,
            tokens_per_step=budget.tokens_per_step,
            flops_per_token=flops_per_token(config.model, config.data.seq_len),
            peak_flops=None if peak is None else peak * processes.environment.world_size,
            memory_gib=peak_memory_gib(device),
            loss_scaled=config.precision.compute == "fp16",
        )

    return make_row


def make_writers(
    config: RunConfig, directory: RunDirectory, next_step: int, *, enabled: bool
) -> MetricsWriters:
    """The writers that the config asks for; what older files say from `next_step` on is hidden.

    Args:
        enabled: otherwise there are none; one process alone shows anything.
    """
    writers: list[MetricsWriter] = []
    if not enabled:
        return MetricsWriters(writers)
    if config.metrics.tensorboard:
        writers.append(TensorBoard(directory.tensorboard, next_step))
    if config.metrics.wandb_project is not None:
        settings = config.model_dump(mode="json")
        writers.append(WeightsAndBiases(config.metrics.wandb_project, directory.path, settings))
    return MetricsWriters(writers)
