"""`triax submit`: checks the config, renders a SLURM batch script and submits it. No torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from triax.common.errors import ExitCode, UserError
from triax.launcher.checks.sections import find_warnings, load_checked
from triax.launcher.config.problems import likely_not_meant
from triax.launcher.slurm.batch_job import BatchJob, read_template, refuse_hopeless_times, submit
from triax.launcher.slurm.mounts import mounts_for
from triax.launcher.terminal.arguments import as_path, as_path_text, count, positive_int
from triax.launcher.terminal.messages import print_warning

CPUS_PER_GPU = 4
"""What a process with a GPU needs beside it: its own thread, the loader's, and those that save."""
EXAMPLE = """\
examples:
  triax submit run.toml --nodes 2 --gpus-per-node 8 --time 24:00:00
  triax submit run.toml --nodes 16 --gpus-per-node 8 --setup 'source env.sh'
  triax submit run.toml --nodes 2 --gpus-per-node 8 --chain 5 --dry-run
  triax submit run.toml --nodes 2 --gpus-per-node 0 --processes-per-node 4

The job saves before its time limit and when it is preempted, goes back into the
queue by itself, and goes on with the nodes left after one has failed. See
docs/launching.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("config", type=as_path_text, metavar="CONFIG", help="the run's TOML file")
    size = parser.add_argument_group("size")
    size.add_argument("--nodes", type=positive_int, required=True, metavar="N")
    size.add_argument(
        "--gpus-per-node",
        type=_gpus,
        required=True,
        metavar="[TYPE:]G",
        help="as for sbatch: 8, or h100:8; 0 for a CPU cluster",
    )
    size.add_argument(
        "--processes-per-node", type=positive_int, metavar="P", help="default: one for each GPU"
    )
    size.add_argument(
        "--cpus-per-task",
        type=positive_int,
        metavar="C",
        help=f"cores a process (default: {CPUS_PER_GPU} with a GPU, else 1)",
    )
    queue = parser.add_argument_group("queue (as for sbatch)")
    for name in ("partition", "time", "account", "qos", "job-name"):
        queue.add_argument(f"--{name}")
    queue.add_argument(
        "--extra-sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other option of sbatch, as --extra-sbatch=--mem=0; may be repeated",
    )
    _add_life_arguments(parser.add_argument_group("life"))
    _add_surroundings(parser.add_argument_group("surroundings"))
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.set_defaults(overrides=())
    parser.usage = (
        f"{parser.prog} CONFIG --nodes N --gpus-per-node G\n"
        "       [OPTION ...] [--section.key=value ...]"
    )
    parser.epilog = EXAMPLE


def _add_life_arguments(life: argparse._ArgumentGroup) -> None:
    life.add_argument(
        "--chain",
        type=positive_int,
        default=1,
        metavar="K",
        help="submit K jobs, each after the one before; the last requeues itself (default: 1)",
    )
    life.add_argument(
        "--grace",
        type=positive_int,
        default=300,
        metavar="SECONDS",
        help="how long before the time limit to save: more than a step and a save take "
        "(default: 300)",
    )
    life.add_argument(
        "--max-restarts",
        type=count,
        default=3,
        metavar="R",
        help="restarts after failures without a new checkpoint between them (default: 3)",
    )


def _add_surroundings(surroundings: argparse._ArgumentGroup) -> None:
    surroundings.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="SHELL",
        help="a line of shell run before the ranks, as 'source env.sh'; may be repeated",
    )
    surroundings.add_argument(
        "--container", metavar="IMAGE", help="run the ranks in this image (the pyxis plugin)"
    )
    surroundings.add_argument(
        "--container-mounts",
        metavar="FROM:TO,...",
        help="default: this folder, and what the config names elsewhere",
    )
    surroundings.add_argument(
        "--extra-srun",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other option of srun, for the ranks; may be repeated",
    )
    surroundings.add_argument(
        "--template", type=as_path, metavar="FILE", help="your own version of launcher/slurm/job.sh"
    )


def run(args: argparse.Namespace) -> int:
    """Check the config for all processes, then print the script or submit it.

    Raises:
        ConfigError: with every problem of the config.
        UserError: an option can't be used, or sbatch refuses.
    """
    gpu_type, num_gpus = args.gpus_per_node
    per_node = _processes_per_node(args.processes_per_node, num_gpus)
    if args.container_mounts and not args.container:
        raise UserError("--container-mounts is of use with --container IMAGE alone; give both")
    refuse_hopeless_times(args.time, args.extra_sbatch, args.grace)
    world_size = args.nodes * per_node
    config = load_checked(args.config, args.overrides, world_size)
    if warnings := find_warnings(config, world_size):
        print_warning(likely_not_meant(args.config, warnings))
    job = BatchJob(
        config=args.config,
        overrides=tuple(args.overrides),
        run_name=config.run.name,
        run_dir=config.run_dir.absolute(),
        folder=Path.cwd(),
        num_nodes=args.nodes,
        gpus_per_node=f"{gpu_type}{num_gpus}" if num_gpus else "",
        processes_per_node=per_node,
        grace_seconds=args.grace,
        max_restarts=args.max_restarts,
        num_links=args.chain,
        job_name=args.job_name,
        partition=args.partition,
        time=args.time,
        account=args.account,
        qos=args.qos,
        cpus_per_task=args.cpus_per_task or (CPUS_PER_GPU if num_gpus else None),
        container=args.container,
        container_mounts=args.container_mounts
        or (mounts_for(args.config, config) if args.container else None),
        setup=tuple(args.setup),
        extra_sbatch=tuple(args.extra_sbatch),
        extra_srun=tuple(args.extra_srun),
    )
    template = read_template(args.template)
    if args.dry_run:
        print(job.render(template), end="")
        return ExitCode.DONE
    ids = submit(job, template)
    noun = "job" if len(ids) == 1 else "jobs"
    print(f"submitted {noun} {', '.join(ids)}; logs: {job.run_dir}/logs/slurm-{ids[0]}.log")
    return ExitCode.DONE


def _processes_per_node(wanted: int | None, num_gpus: int) -> int:
    """As many as wanted, or one a GPU.

    Raises:
        UserError: that is none, or more than there are GPUs.
    """
    per_node = wanted or num_gpus
    if not per_node:
        raise UserError("--gpus-per-node 0 needs --processes-per-node")
    if num_gpus and per_node > num_gpus:
        raise UserError(f"--processes-per-node {per_node} is more than --gpus-per-node {num_gpus}")
    return per_node


def _gpus(text: str) -> tuple[str, int]:
    """A node's GPUs for argparse's `type`: their type as in `h100:`, or nothing, and number."""
    match = re.fullmatch(r"([\w.-]+:)?(\d{1,9})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a number, as 8 or h100:8, got {text!r}")
    return match[1] or "", int(match[2])
