"""What `precision.compute = "auto"` stands for in a job: the same on all of its processes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.parallel.collectives import reduce_objects
from triax.training.records.hardware import device_name, multiplies_bf16

log = logging.getLogger("triax.job")


def with_precision(
    config: RunConfig, processes: Processes, say: Callable[[str], None] = log.info
) -> RunConfig:
    """The config with bf16 or fp32 in the place of "auto". Collective, whatever is asked for: that
    all processes ask for the same is looked at later.

    Args:
        say: is told what was chosen and why, on every process.
    """
    has_bf16 = reduce_objects(multiplies_bf16(processes.device), _both, processes.control_group)
    precision = config.precision.resolved(has_bf16=has_bf16)
    if precision == config.precision:
        return config
    name = device_name(processes.device)
    why = f"{name} has bf16 in hardware" if has_bf16 else f"{name} has no bf16 in hardware"
    line = f'auto     {precision.compute}: {why} (precision.compute = "auto")'
    say(line)
    return config.model_copy(update={"precision": precision})


def _both(here: bool, there: bool) -> bool:
    return here and there
