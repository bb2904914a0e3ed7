"""How many processes run: `python -m triax.launcher.slurm.placement CONFIG`.

A batch script asks here before each start, so that a job goes on with the nodes that it has left.
Imports no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from triax.common.errors import ExitCode
from triax.launcher.checks.sections import load_checked
from triax.launcher.cluster.exits import run_to_exit_code
from triax.launcher.config.overrides import parse_arguments
from triax.launcher.terminal.arguments import positive_int
from triax.launcher.terminal.messages import print_note
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.stages import schedule_problem
from triax.training.config import BatchConfig
from triax.training.records.run_directory import RunDirectory

MODULE = "triax.launcher.slurm.placement"
_ENDINGS = (ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.STOPPED_BY_GUARD)
"""What a later job of a chain doesn't go on from."""


def largest_world(batch: BatchConfig, parallel: ParallelConfig, num_available: int) -> int | None:
    """The most processes, of those available, over which the same global batch divides.

    Tensor, pipeline and replicate degrees stay, and the pipeline's schedule; the data-parallel
    size gives way. So every step keeps its samples and their order.

    Returns:
        None when even one data-parallel rank per replica needs more processes.
    """
    unit = Layout.unit_of(parallel)
    micro_batches, remainder = divmod(batch.global_batch_size, batch.micro_batch_size)
    if remainder:
        return None
    for num_processes in range(num_available // unit * unit, 0, -unit):
        data_ranks = Layout.of(parallel, num_processes).data_parallel
        if micro_batches % data_ranks:
            continue
        if parallel.pipeline > 1 and schedule_problem(parallel, micro_batches // data_ranks):
            continue
        return num_processes
    return None


@dataclass(frozen=True)
class Placement:
    """Processes on nodes: full nodes first, in order, so that neighbours stay neighbours."""

    num_processes: int
    used: tuple[str, ...]
    idle: tuple[str, ...]
    """What stays idle: nodes, and processes of the last used node such as `node3 (2 of 8)`."""

    @staticmethod
    def of(num_processes: int, nodes: Sequence[str], per_node: int) -> Placement:
        """Place so many processes on nodes that have room for `per_node` each."""
        num_used = -(-num_processes // per_node)
        spare = num_used * per_node - num_processes
        partly = (f"{nodes[num_used - 1]} ({spare} of {per_node})",) if spare else ()
        return Placement(
            num_processes, tuple(nodes[:num_used]), (*partly, *tuple(nodes[num_used:]))
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the number of processes and the nodes for them, on one line; notes go to stderr.

    Prints nothing, and returns the run's exit code, if `--unless-ended` and the run has ended.
    Otherwise returns 0, 2 if the config is wrong, or 75 if the nodes given are too few for it.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="the run's TOML file")
    parser.add_argument("--nodes", nargs="+", required=True, help="names of the nodes left")
    parser.add_argument("--per-node", type=positive_int, required=True, help="processes on each")
    parser.add_argument("--wanted", type=positive_int, required=True, help="processes in all")
    parser.add_argument("--unless-ended", action="store_true", help="look at exit.json first")
    parser.set_defaults(overrides=())
    args = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    return run_to_exit_code(partial(_place, args))


def _place(args: argparse.Namespace) -> int:
    config = load_checked(args.config, args.overrides, args.wanted)
    ending = ending_of(RunDirectory(config.run_dir)) if args.unless_ended else None
    if ending is not None:
        print_note(f"{config.run_dir} has ended already, with code {ending}")
        return ending
    num_available = min(len(args.nodes) * args.per_node, args.wanted)
    num_processes = largest_world(config.batch, config.parallel, num_available)
    if num_processes is None:
        print_note(
            f"{num_available} processes on {', '.join(args.nodes)} are too few for this run: one "
            f"replica takes {config.parallel.tensor} tensor x {config.parallel.pipeline} pipeline, "
            f"and there are at least {config.parallel.replicate}"
        )
        return ExitCode.PREEMPTED
    placement = Placement.of(num_processes, args.nodes, args.per_node)
    if num_processes < args.wanted:
        idle = f"; idle: {', '.join(placement.idle)}" if placement.idle else ""
        print_note(
            f"{num_processes} of {args.wanted} processes run, each with a larger part of the same "
            f"global batch{idle}"
        )
    print(placement.num_processes, ",".join(placement.used))
    return ExitCode.DONE


def ending_of(directory: RunDirectory) -> int | None:
    """The exit code of a run that needs no more jobs, by its exit.json; None if it goes on."""
    ending = directory.read_exit()
    return ending["code"] if ending is not None and ending["code"] in _ENDINGS else None


if __name__ == "__main__":
    sys.exit(main())
