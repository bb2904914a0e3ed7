"""The whole grid of layouts on up to eight processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.stages import SCHEDULES

MAX_PROCESSES = 8


def layouts() -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of processes and `[parallel]` section: all degrees with every ZeRO stage, and every
    schedule with every ZeRO stage."""
    for tensor in (1, 2, 4):
        for pipeline in (1, 2, 4):
            for replicate in (1, 2):
                for zero_stage in (0, 1, 2, 3):
                    yield from _layout(tensor, pipeline, replicate, zero_stage)
    for schedule in SCHEDULES:
        for pipeline in (2, 4):
            for zero_stage in (0, 1, 2, 3):
                # DualPipeV needs as many micro-batches as stages.
                is_deep = schedule == "dualpipe-v" and pipeline == 4
                yield (
                    (pipeline if is_deep else 2 * pipeline),
                    {
                        "pipeline": pipeline,
                        "pipeline_schedule": schedule,
                        "zero_stage": zero_stage,
                    },
                )


def _layout(
    tensor: int, pipeline: int, replicate: int, zero_stage: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """With two shards where there is room for them."""
    parallel = {
        "tensor": tensor, "pipeline": pipeline, "replicate": replicate, "zero_stage": zero_stage,
    }  # fmt: skip
    unit = Layout.unit_of(ParallelConfig.model_validate(parallel))
    num_processes = unit * (2 if 2 * unit <= MAX_PROCESSES else 1)
    if num_processes <= MAX_PROCESSES and not (zero_stage == 0 and replicate > 1):
        yield num_processes, parallel
