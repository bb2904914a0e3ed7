"""Takes steps, and measures them: time, memory, and under a profiler where the time goes."""

from __future__ import annotations

import gc
import gzip
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from triax.training.bench.timing import Laps, Step, run_laps
from triax.training.bench.trace import STEP_RANGE, Breakdown, break_down
from triax.training.loop.garbage import GarbageControl
from triax.training.records.hardware import memory_bytes, peak_memory_gib
from triax.training.step.step import StepResult

NUM_WARMUP_STEPS = 3
"""After the first one: allocators and clocks settle."""
_NUM_PROFILED_STEPS = 3


@dataclass(frozen=True)
class Memory:
    """Of one device, in GiB; of a CPU only what the process has used in all."""

    peak_gib: float
    """In tensors at most, on a GPU."""
    reserved_gib: float | None
    """Taken from the GPU at most, by the allocator."""
    total_gib: float
    growth_bytes: int | None
    """What tensors took more after the last timed step than after the first."""
    num_retries: int | None
    """Times that memory had to be given back for an allocation, in the timed steps."""
    num_device_allocations: int | None
    """Calls of cudaMalloc in the timed steps."""


@dataclass(frozen=True)
class Measured:
    """Steps of one training loop.

    Attributes:
        first_step_seconds: of the first step, with what is compiled in it.
        step_seconds: of the timed steps.
        losses: of the timed steps.
        first_loss: before the first update.
        num_skipped: timed steps that the guard refused.
        memory: of this process's device.
        breakdown: of other steps, which ran under a profiler.
    """

    first_step_seconds: float
    step_seconds: list[float]
    losses: list[float]
    first_loss: float
    num_skipped: int
    memory: Memory
    breakdown: Breakdown


def measure(
    step: Step,
    device: torch.device,
    *,
    num_steps: int,
    collect_garbage_every: int | None,
    trace: Path | None = None,
) -> Measured:
    """Take one first step, a few to warm up, the timed ones, and a few under a profiler.

    Args:
        step: takes one.
        device: where it computes.
        num_steps: the timed ones.
        collect_garbage_every: as `run.collect_garbage_every` does in training.
        trace: keep the profiler's trace here; gzipped where the name ends so.
    """
    garbage = GarbageControl(collect_garbage_every)

    def step_and_collect(number: int) -> StepResult[Tensor]:
        result = step(number)
        garbage.after_step(number + 1)
        return result

    with garbage:
        return _measure(step_and_collect, device, num_steps, trace)


def _measure(step: Step, device: torch.device, num_steps: int, trace: Path | None) -> Measured:
    begin = time.perf_counter()
    first = run_laps(step, 0, 1, device)
    first_step_seconds = time.perf_counter() - begin
    run_laps(step, 1, NUM_WARMUP_STEPS, device)
    before = _allocator(device)
    timed = run_laps(step, 1 + NUM_WARMUP_STEPS, num_steps, device)
    memory = _memory(device, timed, before, _allocator(device))
    return Measured(
        first_step_seconds=first_step_seconds,
        step_seconds=[each.seconds for each in timed.figures],
        losses=[each.result.loss for each in timed.figures],
        first_loss=first.figures[0].result.loss,
        num_skipped=sum(bool(each.result.skipped) for each in timed.figures),
        memory=memory,
        breakdown=_profiled(step, 1 + NUM_WARMUP_STEPS + num_steps, device, trace),
    )


def release_memory() -> None:
    """Give back what nobody refers to any more, objects in circles among it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _profiled(step: Step, first: int, device: torch.device, trace: Path | None) -> Breakdown:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)

    def in_range(number: int) -> StepResult[Tensor]:
        with record_function(STEP_RANGE):
            return step(number)

    with profile(activities=activities, acc_events=True) as profiler:
        run_laps(in_range, first, 1 + _NUM_PROFILED_STEPS, device)
    with tempfile.TemporaryDirectory() as folder:
        path = trace or Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        opened = gzip.open if path.suffix == ".gz" else Path.open
        with opened(path, "rt") as file:
            return break_down(json.load(file), device.type == "cuda")


def _allocator(device: torch.device) -> dict[str, int]:
    return torch.cuda.memory_stats(device) if device.type == "cuda" else {}


def _memory(
    device: torch.device, laps: Laps, before: dict[str, int], after: dict[str, int]
) -> Memory:
    is_gpu = device.type == "cuda"

    def grown(name: str) -> int | None:
        return after[name] - before[name] if name in after else None

    return Memory(
        peak_gib=peak_memory_gib(device),
        reserved_gib=torch.cuda.max_memory_reserved(device) / 2**30 if is_gpu else None,
        total_gib=memory_bytes(device) / 2**30,
        growth_bytes=laps.allocated[-1] - laps.allocated[0] if laps.allocated else None,
        num_retries=grown("num_alloc_retries"),
        num_device_allocations=grown("num_device_alloc"),
    )
