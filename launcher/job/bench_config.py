"""The config of a benchmark: a run's, or a preset's on this device. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from triax.launcher.checks.sections import find_step_problems
from triax.launcher.config.loading import CrossCheck, no_checks, parse_config, read_config
from triax.launcher.config.run_config import RunConfig
from triax.models.description import describe
from triax.parallel.layout import Layout

_SOURCE = "triax bench"
_DEFAULTS = (
    "run.name=bench",
    'data.sources=[{"path": "random"}]',
    "data.mask_documents=false",
    "batch.global_batch_size=1",
)
_DEVICE_DEFAULTS = {
    "cpu": ("data.seq_len=256",),
    "cuda": ("data.seq_len=8192", "precision.compute=bf16", "parallel.compile=true"),
}


def bench_config(
    path: str | None, overrides: Sequence[str], device: str, world_size: int
) -> RunConfig:
    """What is to be measured.

    Args:
        path: a run's file. Without one, settings that suit the device are the defaults, and a step
            has as few micro-batches as it can have.
        overrides: each `a.b=value`.
        device: "cpu" or "cuda".
        world_size: number of processes.

    Raises:
        ConfigError: with every problem that would keep the step from being taken.
        UserError: the file can't be read or is no TOML.
    """
    check = partial(find_step_problems, world_size=world_size)
    if path is not None:
        return parse_config(path, read_config(path), overrides, check)
    defaults = (*_DEFAULTS, *_DEVICE_DEFAULTS[device])
    config = _parse((*defaults, *overrides))
    num_positions = describe(config.model).architecture.num_positions
    if num_positions is not None:
        defaults = (*defaults, f"data.seq_len={min(config.data.seq_len, num_positions)}")
    num_sequences = f"batch.global_batch_size={_fewest_sequences(config, world_size)}"
    return _parse((*defaults, num_sequences, *overrides), check)


def _parse(overrides: Sequence[str], check: CrossCheck = no_checks) -> RunConfig:
    return parse_config(_SOURCE, "", overrides, check)


def _fewest_sequences(config: RunConfig, world_size: int) -> int:
    """One micro-batch on each data-parallel rank, and one more for each further stage."""
    data_parallel = Layout.data_parallel_of(config.parallel, world_size) or 1
    return config.batch.micro_batch_size * data_parallel * config.parallel.pipeline
