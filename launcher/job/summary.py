"""What a run says before its first step and after its last."""

from __future__ import annotations

import logging
import shlex
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from triax.checkpoint.folders import resolve_checkpoint
from triax.common.errors import ExitCode
from triax.common.quantities import format_count, format_seconds
from triax.launcher.checks.parallel import reduced_dtypes
from triax.launcher.checks.summary import active_parameters
from triax.launcher.cluster.environment import Environment
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.job import Job
from triax.launcher.job.sample_text import sample_lines
from triax.models.counts import num_parameters
from triax.parallel.layout import Layout
from triax.parallel.picture import draw_mesh, tensor_crosses_nodes
from triax.training.loop.loop import Outcome
from triax.training.records.expert_load import describe_load, plot_loads, read_loads
from triax.training.records.hardware import device_name
from triax.training.records.plot import plot_losses, read_curves
from triax.training.records.run_directory import RunDirectory
from triax.training.step.budget import Budget, chinchilla_tokens

log = logging.getLogger("triax.summary")

_MANY_REFUSED = 0.01
"""Share of refused updates above which the closing summary warns."""


def tell_opening(job: Job) -> None:
    """Say what the run is, and which process of it is where."""
    job.say(opening_summary(job.config, job.budget, job.layout, job.processes.device))
    environment = job.processes.environment
    if environment.world_size > 1:
        expert = job.config.parallel.expert
        job.say("\n".join(mesh_summary(job.layout, environment.local_world_size, expert)))


def mesh_summary(layout: Layout, processes_per_node: int, expert: int = 1) -> list[str]:
    """Who is where, and a warning if a tensor-parallel group crosses nodes; for several axes."""
    lines = [f"  {line}" for line in draw_mesh(layout, processes_per_node, expert).splitlines()]
    if tensor_crosses_nodes(layout, processes_per_node):
        lines.append(
            f"warning: tensor parallelism over {layout.tensor} processes crosses nodes of "
            f"{processes_per_node}:\n         each layer waits for the network; keep "
            "parallel.tensor within a node"
        )
    return lines


def opening_summary(config: RunConfig, budget: Budget, layout: Layout, device: torch.device) -> str:
    """Model, length, batch and layout in a few lines of at most 80 columns."""
    name = config.model.preset or "custom"
    axes = " x ".join(
        f"{size} {axis}"
        for axis, size in (
            ("pipeline", layout.pipeline),
            ("replicate", layout.replicate),
            ("shard", layout.shard),
            ("context", layout.context),
            ("tensor", layout.tensor),
        )
        if size > 1
    )
    count = layout.world_size
    processes = "1 process" if count == 1 else f"{count} processes ({axes})"
    return "\n".join(
        (
            f"run      {config.run_dir}",
            f"model    {name}, {format_count(num_parameters(config.model))} parameters"
            f"{active_parameters(config.model)}",
            f"budget   {budget.num_tokens:,} tokens in {budget.num_steps:,} steps of "
            f"{budget.tokens_per_step:,}",
            f"batch    {config.batch.global_batch_size} sequences of {config.data.seq_len} tokens, "
            f"{config.batch.micro_batch_size} a micro-batch",
            f"compute  {processes} on {device_name(device)}, {config.precision.compute}, "
            f"ZeRO {config.parallel.zero_stage}{_unusual(config)}",
        )
    )


def _unusual(config: RunConfig) -> str:
    """The engine, if it isn't ours, and what is kept in fewer bits than usual."""
    engine: str = config.parallel.engine
    parts = [] if engine == "native" else [engine]
    for path, dtype in reduced_dtypes(config.optimizer, config.precision):
        what = "gradients" if path == "precision.gradients" else "moments"
        parts.append(f"{dtype} {what}")
    return ",\n         " + ", ".join(parts) if parts else ""


def closing_summary(
    config: RunConfig, directory: RunDirectory, outcome: Outcome, environment: Environment
) -> str:
    """How the run ended, what it reached, and how to go on.

    A part that fails says so in its place: the run has ended as it has.
    """
    lines = ["", f"ended after step {outcome.state.step}: {outcome.reason}"]
    if outcome.evaluation is not None:
        main, *others = outcome.evaluation.describe()
        lines += [f"validation {main}".rstrip(), *others]
    lines += _refused(outcome)
    if outcome.code is ExitCode.DONE:
        lines += _or_why_not(
            "sample", lambda: sample_lines(config, directory.path, _newest_checkpoint(directory))
        )
        if config.objective.kind == "pretrain":
            lines.append(_chinchilla(config, outcome.tokens_per_second))
    lines += _or_why_not("loss plot", partial(_plot, config, directory))
    lines += _or_why_not("experts", partial(_experts, config, directory))
    lines += _or_why_not("checkpoint", lambda: [f"checkpoint   {_newest_checkpoint(directory)}"])
    lines.append(f"to resume    {_resume_command(directory, outcome, environment)}")
    return "\n".join(lines)


def _or_why_not(name: str, part: Callable[[], list[str]]) -> list[str]:
    """The lines of a part of the summary, or a line that says why there are none."""
    try:
        return part()
    except Exception as error:
        log.warning("the summary has no %s", name, exc_info=True)
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        return textwrap.wrap(f"{name:12} none: {reason}", 79, subsequent_indent=" " * 13)


def _plot(config: RunConfig, directory: RunDirectory) -> list[str]:
    curves = read_curves(directory, config.batch.global_batch_size * config.data.seq_len)
    lines = []
    if curves.num_unreadable:
        lines.append(f"loss plot    without {curves.num_unreadable} lines that can't be read")
    if curves.training or curves.validation:
        plot_losses(directory.plot, curves, config.run.name)
        lines.append(f"loss plot    {directory.plot}")
    return lines


def _experts(config: RunConfig, directory: RunDirectory) -> list[str]:
    """How evenly the last step's tokens went to experts, and a picture of all steps."""
    rows = directory.rows(directory.metrics)
    load = describe_load(rows)
    if load is None:
        return []
    plot_loads(directory.load_plot, read_loads(rows), config.run.name)
    lines = textwrap.wrap(f"experts      {load}", 79, subsequent_indent=" " * 13)
    return [*lines, f"             {directory.load_plot}"]


def _refused(outcome: Outcome) -> list[str]:
    """How many updates the guard refused in the whole run, if any; a warning if it's many."""
    if not outcome.num_refused:
        return []
    share = outcome.num_refused / outcome.num_judged
    lines = [
        f"refused      {outcome.num_refused:,} of {outcome.num_judged:,} updates by the guard "
        f"({share:.2%})"
    ]
    if share > _MANY_REFUSED:
        lines.append(
            f"warning: more than {_MANY_REFUSED:.0%} of the updates were refused and taught the "
            "model\n         nothing: events.jsonl has the reasons (skipped_update), "
            "docs/stability.md\n         what to do"
        )
    return lines


def _newest_checkpoint(directory: RunDirectory) -> Path:
    """By sizes: the other ranks wait, and to read all of a large one takes longer than they do."""
    return resolve_checkpoint(directory.path, contents=False)


def _chinchilla(config: RunConfig, tokens_per_second: float) -> str:
    tokens = chinchilla_tokens(config.budget, config.model)
    active = "active " if active_parameters(config.model) else ""
    text = (
        f"chinchilla   {format_count(tokens)} tokens would be compute-optimal "
        f"({config.budget.tokens_per_parameter:g} per {active}parameter, "
        f"{config.budget.parameters.replace('-', ' ')})"
    )
    if tokens_per_second > 0:
        text += (
            f":\n             {format_seconds(tokens / tokens_per_second)} here at "
            f"{format_count(tokens_per_second)} tokens/s"
        )
    return text


def _resume_command(directory: RunDirectory, outcome: Outcome, environment: Environment) -> str:
    """On one machine; a job on several is started again as it was."""
    command = f"triax train {shlex.quote(str(directory.config))}"
    if environment.world_size > 1 and environment.num_nodes == 1:
        command += f" --nproc-per-node {environment.world_size}"
    if outcome.code is ExitCode.DONE:
        command += f" --budget.tokens={2 * outcome.state.tokens}"
    return command
