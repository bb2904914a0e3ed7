"""What a benchmark does in one process: a run's step from its parts, then its limit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from triax.common.errors import UserError
from triax.common.quantities import format_count
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.process_group import Processes, joined, make_deterministic
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.engine import make_engine
from triax.launcher.job.precision import with_precision
from triax.models.counts import flops_per_token, num_parameters
from triax.parallel.dtypes import DTYPES
from triax.parallel.float8 import require_float8
from triax.parallel.layout import Layout
from triax.training.bench.batches import RandomBatches
from triax.training.bench.measure import Measured, measure, release_memory
from triax.training.bench.report import Report, Setup
from triax.training.bench.roofline import Work, measure_roofline, optimizer_bytes
from triax.training.bench.timing import Step
from triax.training.records.hardware import device_name, memory_bytes, peak_flops
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.step import StepContext, train_step

_ADVICE = (
    "lower --micro-batch-size or --seq-len, compute activations again "
    "(--parallel.activation_checkpointing=selective, or full), or use more processes"
)


def bench(
    config: RunConfig, environment: Environment, *, num_steps: int, trace: Path | None = None
) -> Report:
    """Measure the config's training step, then its limit with the step's memory given back.

    Args:
        config: checked against this job's number of processes.
        environment: which process this is.
        num_steps: the timed ones.
        trace: where rank 0 keeps the profiler's trace.

    Raises:
        UserError: there isn't enough memory.
    """
    with joined(
        environment,
        timeout_seconds=config.parallel.timeout.amount,
        save_seconds=config.checkpoint.deadline.amount,
        run_dir=config.run_dir,
    ) as processes:
        config = with_precision(config, processes)
        layout = Layout.of(config.parallel, environment.world_size)
        _refuse_hopeless(config, layout, processes)
        if config.precision.compute == "fp8":
            require_float8(processes.device, config.precision.fp8_recipe)
        if config.run.deterministic:
            make_deterministic(processes.device)
        with _out_of_memory_is_told(processes.device):
            measured, start_seconds, moved = _measure_step(
                config, layout, processes, num_steps, trace if processes.is_main else None
            )
            release_memory()
            work = _work(config, layout, moved)
            limit = measure_roofline(work, processes.device)
        return Report(_setup(config, layout, processes, start_seconds), measured, limit)


def make_step(config: RunConfig, layout: Layout, processes: Processes) -> tuple[Step, int]:
    """A run's training step on random tokens, and the bytes that its update moves at least."""
    engine = make_engine(config, layout, processes)
    context = StepContext(
        engine,
        LossScaler(config.precision, engine.device),
        Guard(config.stability, engine.device),
        config.optimizer.clip_norm,
    )
    batches = RandomBatches(
        vocab_size=config.model.vocab_size,
        seq_len=config.data.seq_len,
        micro_batch_size=config.batch.micro_batch_size,
        num_micro_batches=num_micro_batches(config, layout),
        dp_rank=layout.data_rank(processes.environment.rank),
        mask_documents=config.data.mask_documents,
        pin_memory=processes.device.type == "cuda",
    )
    moved = optimizer_bytes(engine.state(), config.precision)
    return lambda number: train_step(context, batches.of_step(number), config.optimizer.lr), moved


def _measure_step(
    config: RunConfig, layout: Layout, processes: Processes, num_steps: int, trace: Path | None
) -> tuple[Measured, float, int]:
    """The measured steps, the seconds from the process's start to the first one's end, and the
    bytes of an update. Nothing of the engine is left after it."""
    step, moved = make_step(config, layout, processes)
    built = _seconds_since_process_start()
    measured = measure(
        step,
        processes.device,
        num_steps=num_steps,
        collect_garbage_every=config.run.collect_garbage_every,
        trace=trace,
    )
    return measured, built + measured.first_step_seconds, moved


def num_micro_batches(config: RunConfig, layout: Layout) -> int:
    """Forward passes of one process in a step."""
    return layout.num_micro_batches(config.batch.global_batch_size, config.batch.micro_batch_size)


def _work(config: RunConfig, layout: Layout, moved: int) -> Work:
    return Work(
        config.model,
        num_micro_batches(config, layout),
        config.batch.micro_batch_size,
        config.data.seq_len,
        config.precision.compute,
        layout.tensor,
        layout.pipeline * layout.context,
        moved,
    )


def _setup(config: RunConfig, layout: Layout, processes: Processes, start_seconds: float) -> Setup:
    parallel, name = config.parallel, device_name(processes.device)
    return Setup(
        model=config.model.preset or "custom",
        num_layers=config.model.num_layers,
        num_parameters=num_parameters(config.model),
        seq_len=config.data.seq_len,
        micro_batch_size=config.batch.micro_batch_size,
        num_micro_batches=num_micro_batches(config, layout),
        num_tokens=config.batch.global_batch_size * config.data.seq_len,
        flops_per_token=flops_per_token(config.model, config.data.seq_len),
        device=name,
        num_processes=processes.environment.world_size,
        compute=config.precision.compute,
        peak_flops=peak_flops(name, config.precision.compute),
        options={
            "engine": parallel.engine,
            "ZeRO": parallel.zero_stage,
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "context": parallel.context,
            "gradients": config.precision.gradients,
            "moments": config.optimizer.state_dtype,
            "compile": str(parallel.compile).lower(),
            "activation_checkpointing": parallel.activation_checkpointing,
            "mask_documents": str(config.data.mask_documents).lower(),
        },
        versions={
            "triax": importlib.metadata.version("triax"),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none",
        },
        start_seconds=start_seconds,
    )


def _refuse_hopeless(config: RunConfig, layout: Layout, processes: Processes) -> None:
    """Weights, gradients and moments that can't fit a machine's memory: it would not refuse them,
    but end the process, or others.

    Raises:
        UserError: the memory is smaller.
    """
    if processes.device.type == "cuda":
        return
    num_weights = num_parameters(config.model)
    num_here = processes.environment.local_world_size
    gradients, moments = DTYPES[config.precision.gradients], DTYPES[config.optimizer.state_dtype]
    bytes_a_weight = 4 + gradients.itemsize + 2 * moments.itemsize
    needed = bytes_a_weight * num_weights * num_here / layout.num_parts
    there = memory_bytes(processes.device)
    if needed > there:
        raise UserError(
            f"out of memory: weights, gradients and moments of {format_count(num_weights)} "
            f"parameters take {needed / 2**30:,.1f} GiB on this machine, which has "
            f"{there / 2**30:,.1f}: choose a smaller model"
        )


@contextlib.contextmanager
def _out_of_memory_is_told(device: torch.device) -> Iterator[None]:
    """Turn the lack of memory into a user's error, which says what to change."""
    try:
        yield
    except RuntimeError as error:
        is_lack = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not is_lack:
            raise
        raise UserError(
            f"out of memory: {device_name(device)} has {memory_bytes(device) / 2**30:,.1f} GiB; "
            f"{_ADVICE}"
        ) from None


def _seconds_since_process_start() -> float:
    """Linux knows it; elsewhere only the time that the process computed counts."""
    if sys.platform != "linux":
        return time.process_time()
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
