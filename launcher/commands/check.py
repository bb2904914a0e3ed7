"""`triax check`: everything that is wrong with a config, or what the run would be. No torch."""

from __future__ import annotations

import argparse

from triax.common.errors import ExitCode
from triax.launcher.checks.sections import find_warnings, load_checked
from triax.launcher.checks.summary import summary
from triax.launcher.config.problems import likely_not_meant
from triax.launcher.terminal.arguments import as_path_text, positive_int
from triax.launcher.terminal.messages import print_warning

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
