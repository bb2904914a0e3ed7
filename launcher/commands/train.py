"""`triax train`: checks the config, then starts the run's process or processes.

The check needs no torch, so a mistake is reported at once and once, whatever the number of
processes. Each process is `python -m triax.launcher.train`, as under torchrun.
"""

from __future__ import annotations

import argparse

from triax.common.output import lossy_output
from triax.launcher.checks.sections import load_checked
from triax.launcher.cluster.launchers import discover
from triax.launcher.cluster.workers import become_worker, launch
from triax.launcher.terminal.arguments import add_num_processes, as_path_text

WORKER = "triax.launcher.train"
EXAMPLE = """\
examples:
  triax train examples/quickstart.toml
  triax train run.toml --nproc-per-node 8 --parallel.zero_stage=2
  torchrun --nproc-per-node 8 -m triax.launcher.train run.toml

Any value of the config can be overridden with --section.key=value; lists and
tables take JSON. The same command again resumes the run. Exit codes: 0 done,
2 bad config or data, 3 stopped by the guard, 75 stopped on request after
saving (run it again).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("config", type=as_path_text, metavar="CONFIG", help="the run's TOML file")
    add_num_processes(parser)
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="check and compare the machines first (always done on several nodes)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing but warnings and errors"
    )
    parser.set_defaults(overrides=())
    parser.usage = f"{parser.prog} CONFIG [--nproc-per-node N] [--section.key=value ...]"
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Check the config, start the run and return its exit code.

    Raises:
        ConfigError: with every problem of the config.
        UserError: the config can't be read, or the environment makes no sense.
    """
    world_size = args.num_processes or discover().world_size
    load_checked(args.config, args.overrides, world_size)
    argv = [args.config, *(f"--{override}" for override in args.overrides)]
    if args.preflight:
        argv.append("--preflight")
    if args.quiet:
        argv.append("--quiet")
    with lossy_output():
        if args.num_processes is None:
            become_worker(WORKER, argv)
        return launch(args.num_processes, WORKER, argv)
