"""What `precision.compute = "auto"` stands for in a job: the same on all of its processes."""

from __future__ import annotations

import logging
import operator
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from triax.checkpoint.run_folder import recorded_table
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.parallel.agreement import on_first
from triax.parallel.collectives import reduce_objects
from triax.training.records.hardware import device_name, multiplies_bf16

log = logging.getLogger("triax.job")


def with_precision(
    config: RunConfig,
    processes: Processes,
    resolved: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> RunConfig:
    """The config with bf16 or fp32 in the place of "auto": what the run began with, else by the
    devices. Collective, whatever is asked for: that all processes ask for the same is looked at
    later.

    Args:
        config: of this process.
        processes: that have met.
        resolved: the run's own `config.toml`, which is there once it has begun.
        say: is told what was chosen and why, on every process.
    """
    group = processes.control_group
    begun = on_first(partial(_begun_with, resolved), group)
    has_bf16 = reduce_objects(multiplies_bf16(processes.device), operator.and_, group)
    precision = config.precision.resolved(has_bf16=has_bf16 if begun is None else begun == "bf16")
    if precision == config.precision:
        return config
    name = device_name(processes.device)
    why = f"{name} has bf16 in hardware" if has_bf16 else f"{name} has no bf16 in hardware"
    why = why if begun is None else "as the run began"
    say(f'auto     {precision.compute}: {why} (precision.compute = "auto")')
    return config.model_copy(update={"precision": precision})


def _begun_with(resolved: Path | None) -> str | None:
    """None where the run is new, its file can't be read, or it chose what "auto" never is."""
    if resolved is None:
        return None
    try:
        tables = tomllib.loads(resolved.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    compute = recorded_table(tables, "precision").get("compute")
    return compute if compute in ("bf16", "fp32") else None
