"""`triax check`: everything that is wrong with a config, or what the run would be. No torch."""

from __future__ import annotations

import argparse

from triax.common.errors import ExitCode
from triax.common.quantities import format_count
from triax.launcher.checks.data import tokens_per_step
from triax.launcher.checks.sections import find_warnings, load_checked
from triax.launcher.config.problems import likely_not_meant
from triax.launcher.config.run_config import RunConfig
from triax.launcher.terminal.arguments import as_path_text, positive_int
from triax.launcher.terminal.messages import print_warning
from triax.models.counts import flops_per_token, num_non_embedding_parameters, num_parameters
from triax.training.step.budget import resolve_budget

EXAMPLE = """\
examples:
  triax check run.toml
  triax check run.toml --nproc 8 --batch.micro_batch_size=4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("config", type=as_path_text, metavar="CONFIG", help="the run's TOML file")
    parser.add_argument(
        "--nproc",
        "--nproc-per-node",
        "--world-size",
        dest="world_size",
        type=positive_int,
        metavar="N",
        help="check for a run of N processes (otherwise what depends on their number isn't)",
    )
    parser.set_defaults(overrides=())
    parser.usage = f"{parser.prog} CONFIG [--nproc N] [--section.key=value ...]"
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Check the config and show a summary of the run.

    Raises:
        ConfigError: with every problem there is.
    """
    config = load_checked(args.config, args.overrides, args.world_size)
    print(f"{args.config}: no problems")
    print("\n".join(summary(config, args.world_size)))
    if warnings := find_warnings(config, args.world_size):
        print_warning(likely_not_meant(args.config, warnings))
    return ExitCode.DONE


def summary(config: RunConfig, world_size: int | None) -> list[str]:
    """Lines that say what a run would be."""
    per_step = tokens_per_step(config.batch, config.data)
    budget = resolve_budget(config.budget, config.model, per_step)
    parameters = num_parameters(config.model)
    flops = flops_per_token(config.model, config.data.seq_len)
    micro, size = config.batch.micro_batch_size, config.batch.global_batch_size
    rows = {
        "run": str(config.run_dir),
        "model": f"{format_count(parameters)} parameters, "
        f"{format_count(num_non_embedding_parameters(config.model))} outside the embeddings",
        "length": f"{budget.num_tokens:,} tokens in {budget.num_steps:,} steps, "
        f"{budget.num_tokens / parameters:.3g} per parameter",
        "batch": f"{size:,} x {config.data.seq_len:,} = {per_step:,} tokens a step, "
        f"{micro} at a time per process",
        "compute": f"{budget.num_tokens * flops:.3g} FLOPs, {flops:.3g} a token, "
        f"in {config.precision.compute}",
        "layout": f"{config.parallel.engine}, ZeRO stage {config.parallel.zero_stage}, "
        + _processes(world_size),
        "data": ", ".join(source.path for source in config.data.sources),
    }
    return [_row(label, text) for label, text in rows.items()]


def _processes(world_size: int | None) -> str:
    if world_size is None:
        return "any number of processes that divides"
    return "1 process" if world_size == 1 else f"{world_size} processes"


def _row(label: str, text: str) -> str:
    line = f"  {label:8} {text}"
    return line if len(line) <= 80 else f"{line[:77]}..."
