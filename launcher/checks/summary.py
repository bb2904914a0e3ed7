"""What a run would be, by its config alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from triax.common.errors import UserError
from triax.common.quantities import format_count
from triax.data.config import DataConfig
from triax.data.read.opening import open_sources
from triax.launcher.checks.data import tokens_per_step
from triax.launcher.checks.reading import num_windows, readings
from triax.launcher.config.run_config import RunConfig
from triax.models.config import ModelConfig
from triax.models.counts import (
    flops_per_token,
    num_active_parameters,
    num_non_embedding_parameters,
    num_parameters,
    num_trained_parameters,
)
from triax.training.step.budget import resolve_budget


def summary(config: RunConfig, world_size: int | None) -> list[str]:
    """Lines that say what a run would be."""
    per_step = tokens_per_step(config.batch, config.data)
    budget = resolve_budget(config.budget, config.model, per_step)
    parameters = num_parameters(config.model)
    flops = flops_per_token(config.model, config.data.seq_len)
    micro, size = config.batch.micro_batch_size, config.batch.global_batch_size
    rows = {
        "run": str(config.run_dir),
        "model": f"{format_count(parameters)} parameters{active_parameters(config.model)}"
        f"{trained_parameters(config.model)}, "
        f"{format_count(num_non_embedding_parameters(config.model))} outside the embeddings",
        "length": f"{budget.num_tokens:,} tokens in {budget.num_steps:,} steps, "
        f"{budget.num_tokens / num_active_parameters(config.model):.3g} per parameter",
        "batch": f"{size:,} x {config.data.seq_len:,} = {per_step:,} tokens a step, "
        f"{micro} at a time per process",
        "compute": f"{budget.num_tokens * flops:.3g} FLOPs, {flops:.3g} a token, "
        f"in {_computed_in(config)}",
        "layout": f"{config.parallel.engine}, ZeRO stage {config.parallel.zero_stage}, "
        + _processes(world_size),
        "data": ", ".join(source.path for source in config.data.sources),
    }
    return [
        *(_row(label, text) for label, text in rows.items()),
        *(_row("phase", text) for text in _phases(config.data)),
        *(_row("reads", text) for text in _readings(config, budget.num_tokens)),
    ]


def _computed_in(config: RunConfig) -> str:
    compute: str = config.precision.compute
    return "bf16 or fp32, by the hardware" if compute == "auto" else compute


def _phases(data: DataConfig) -> Iterator[str]:
    """What is read from when on, if it changes on the way."""
    starts = accumulate((phase.tokens or 0 for phase in data.phases[:-1]), initial=0)
    for phase, start in zip(data.phases, starts, strict=False):
        weights = data.weights_in(phase)
        shares = " + ".join(f"{weight / sum(weights):.3g}" for weight in weights)
        length = f"{data.seq_len_in(phase):,} a sequence"
        yield f"from {format_count(start)} tokens on: {length}, sources {shares}"


def _readings(config: RunConfig, num_tokens: int) -> list[str]:
    """How often each source is read; nothing where the data isn't there yet."""
    data = config.data
    try:
        windows = num_windows(data, config.model.vocab_size)
        sources = open_sources(data, config.model.vocab_size)
    except UserError:
        return []
    size, seed = config.batch.global_batch_size, config.run.seed
    found = readings(data, size, seed, num_tokens, windows)
    packed = [source.packed for source in sources if source.packed is not None]
    return [each.describe() for each in found] + [f"packed, {each.describe()}" for each in packed]


def active_parameters(model: ModelConfig) -> str:
    """How many parameters a token passes, where that isn't all of them."""
    active = num_active_parameters(model)
    return "" if active == num_parameters(model) else f", {format_count(active)} of them active"


def trained_parameters(model: ModelConfig) -> str:
    """How many parameters are trained, where those are adapters."""
    return "" if model.lora is None else f", {format_count(num_trained_parameters(model))} trained"


def _processes(world_size: int | None) -> str:
    if world_size is None:
        return "any number of processes that divides"
    return "1 process" if world_size == 1 else f"{world_size} processes"


def _row(label: str, text: str) -> str:
    line = f"  {label:8} {text}"
    return line if len(line) <= 80 else f"{line[:77]}..."
