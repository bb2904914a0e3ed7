"""Commands that use a trained model, in one process or over several.

`--nproc-per-node N` starts N times the same command here; torchrun, srun and mpirun may start it
just as well. Each process finds its place and joins the others; rank 0 talks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.distributed import DistError

from triax.common.errors import ExitCode, UserError
from triax.inference.team import Team
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.exits import report_from_rank, run_to_exit_code
from triax.launcher.cluster.launchers import discover
from triax.launcher.cluster.network import prepare
from triax.launcher.cluster.process_group import end_with_launcher, joined
from triax.launcher.cluster.workers import launch, let_signals_through
from triax.launcher.terminal.arguments import add_num_processes, positive_int
from triax.launcher.terminal.messages import print_error

WORKER = "triax.launcher.cli"
_LONGEST_WAIT = 30 * 24 * 3600.0
"""Seconds: in a conversation all processes wait for a person. Where one ends, launchers end all."""


def add_team_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how many processes there are, and how they divide the model."""
    group = parser.add_argument_group("over several processes")
    add_num_processes(group)
    group.add_argument(
        "--tensor",
        type=positive_int,
        default=1,
        metavar="N",
        help="divide each layer over N of them",
    )
    group.add_argument(
        "--shard", action="store_true", help="divide the weights over all, as ZeRO-3 does"
    )


def run_together(args: argparse.Namespace, use: Callable[[argparse.Namespace, Team], int]) -> int:
    """Run the command's action in the processes that there are, or are to be.

    Args:
        args: the command's, with those of `add_team_arguments`, and its `argv`.
        use: what each process does; returns the exit code.

    Raises:
        UserError: the processes can't meet, or the action says so.
    """
    environment = discover()
    if environment.launcher == "single" and args.num_processes is not None:
        return launch(args.num_processes, WORKER, args.argv)
    let_signals_through()
    if environment.world_size == 1:
        if args.tensor > 1:
            raise UserError(f"--tensor {args.tensor}: needs as many processes: --nproc-per-node N")
        return use(args, Team.alone())
    end_with_launcher()
    return run_to_exit_code(
        partial(_joined, args, use, environment), partial(report_from_rank, environment)
    )


def _joined(
    args: argparse.Namespace,
    use: Callable[[argparse.Namespace, Team], int],
    environment: Environment,
) -> int:
    os.environ.update(environment.variables())
    prepare(environment)
    name = Path(" ".join(args.argv))  # of the job, by which the processes know each other
    with joined(
        environment, timeout_seconds=_LONGEST_WAIT, save_seconds=0, run_dir=name
    ) as processes:
        assert processes.control_group is not None
        team = Team.of(
            processes.device, processes.control_group, tensor=args.tensor, shards=args.shard
        )
        try:
            return use(args, team)
        except RuntimeError as error:
            if not tells_of_a_lost_peer(error):
                raise
            print_error(f"rank {environment.rank}: another process has ended, so this one does too")
            return ExitCode.FAILED


def tells_of_a_lost_peer(error: RuntimeError) -> bool:
    """Whether a message to another process failed: gloo has no class of errors of its own."""
    return isinstance(error, DistError) or "gloo/transport" in str(error)
