"""One process of a run: `python -m triax.launcher.train CONFIG`, alone or under any launcher."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from triax.common.output import lossy_output, no_output
from triax.launcher.checks.sections import find_warnings, load_checked
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.exits import report_from_rank, run_to_exit_code
from triax.launcher.cluster.launchers import discover
from triax.launcher.cluster.network import prepare
from triax.launcher.cluster.process_group import end_with_launcher
from triax.launcher.cluster.workers import let_signals_through
from triax.launcher.config.overrides import parse_arguments
from triax.launcher.config.problems import likely_not_meant
from triax.launcher.job.run import run
from triax.launcher.terminal.messages import print_warning


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or resume, and return the exit code; see `ExitCode`."""
    parser = argparse.ArgumentParser(prog="python -m triax.launcher.train", allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="the run's TOML file")
    parser.add_argument(
        "--preflight", action="store_true", help="check and compare the machines first"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing but warnings and errors"
    )
    # The deepspeed launcher gives it besides the variable.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    parser.set_defaults(overrides=())
    args = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    with lossy_output(), no_output() if args.quiet else nullcontext():
        return run_to_exit_code(partial(_discover_and_train, args))


def _discover_and_train(args: argparse.Namespace) -> int:
    # `triax train` blocks them. SIGUSR1 asks for a save: it waits until there is something to save.
    let_signals_through(but=(signal.SIGUSR1,))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a profiler would announce itself
    environment = discover()
    if environment.launcher != "single":
        end_with_launcher()
    return run_to_exit_code(
        partial(_check_and_train, args, environment), partial(report_from_rank, environment)
    )


def _check_and_train(args: argparse.Namespace, environment: Environment) -> int:
    config = load_checked(args.config, args.overrides, environment.world_size)
    os.environ.update(environment.variables())
    network = prepare(environment)
    if environment.rank == 0 and (warnings := find_warnings(config, environment.world_size)):
        print_warning(likely_not_meant(args.config, warnings))
    if environment.rank == 0:
        print(", ".join(part for part in (f"found    {environment}", network) if part), flush=True)
    return run(config, environment, preflight=args.preflight)


if __name__ == "__main__":
    sys.exit(main())
