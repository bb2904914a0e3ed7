"""One process of a benchmark: `python -m triax.launcher.bench`, alone or under any launcher."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from triax.common.errors import ExitCode, UserError
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.exits import report_from_rank, run_to_exit_code
from triax.launcher.cluster.launchers import discover
from triax.launcher.cluster.network import prepare
from triax.launcher.cluster.process_group import end_with_launcher
from triax.launcher.cluster.workers import let_signals_through
from triax.launcher.commands.bench import add_arguments, as_overrides, refuse_nothing
from triax.launcher.config.overrides import parse_arguments
from triax.launcher.job.bench import bench
from triax.launcher.job.bench_config import bench_config
from triax.training.bench.report import as_json, as_table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print on rank 0, and return the exit code; see `ExitCode`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce itself
    parser = argparse.ArgumentParser(prog="python -m triax.launcher.bench", allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    args = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    return run_to_exit_code(partial(_discover_and_bench, args))


def _discover_and_bench(args: argparse.Namespace) -> int:
    let_signals_through()  # `triax bench` blocks them
    environment = discover()
    if environment.launcher != "single":
        end_with_launcher()
    return run_to_exit_code(
        partial(_bench_and_print, args, environment), partial(report_from_rank, environment)
    )


def _bench_and_print(args: argparse.Namespace, environment: Environment) -> int:
    refuse_nothing(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = bench_config(args.config, as_overrides(args), device, environment.world_size)
    os.environ.update(environment.variables())
    with _stdout_for_results():
        prepare(environment)
        report = bench(config, environment, num_steps=args.steps, trace=_trace_path(args.trace))
    if environment.rank == 0:
        shown = as_table(report, args.kernels or 0)
        print(json.dumps(as_json(report), indent=2) if args.json else shown, flush=True)
    return ExitCode.DONE


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Send what libraries print to stderr, those in C too."""
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(results, 1)
        os.close(results)


def _trace_path(given: str | None) -> Path | None:
    """Where the trace goes.

    Raises:
        UserError: it can't be written there.
    """
    if given is None:
        return None
    path = Path(given)
    if not path.name.endswith((".json", ".json.gz")):
        raise UserError(f"--trace {given}: expected a name that ends with .json or .json.gz")
    if path.is_dir():
        raise UserError(f"--trace {given}: is a folder; give a file in it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--trace {given}: {path.parent} is no folder that can be written to")
    return path


if __name__ == "__main__":
    sys.exit(main())
