"""`triax bench`: measures the training step of a config or a preset on random tokens.

The measuring is `python -m triax.launcher.bench`, one process for each device, as with
`triax train`; what can be said without torch is said first.
"""

from __future__ import annotations

import argparse

from triax.common.errors import UserError
from triax.launcher.cluster.workers import become_worker, launch
from triax.launcher.terminal.arguments import add_num_processes, as_path_text, positive_int
from triax.models.presets import PRESETS

WORKER = "triax.launcher.bench"
EXAMPLE = """\
examples:
  triax bench --preset mini-10m --seq-len 256 --micro-batch-size 4
  triax bench --preset llama3-8b --seq-len 8192 --precision bf16 --steps 20
  triax bench run.toml --parallel.activation_checkpointing=selective
  torchrun --nproc-per-node 8 -m triax.launcher.bench run.toml

Without CONFIG: on a GPU bf16, compiled blocks and sequences of 8192 tokens;
on a CPU fp32 and 256 tokens; one micro-batch a step. docs/performance.md
explains what is printed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; the worker has the same."""
    parser.add_argument(
        "config",
        type=as_path_text,
        metavar="CONFIG",
        nargs="?",
        help="a run's TOML file; its data isn't read",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"the model, instead of [model]: {', '.join(PRESETS)}"
    )
    parser.add_argument("--seq-len", type=positive_int, metavar="N", help="tokens a sequence")
    parser.add_argument(
        "--micro-batch-size", type=positive_int, metavar="N", help="sequences a forward pass"
    )
    parser.add_argument("--precision", metavar="NAME", help="what matrices are multiplied in")
    parser.add_argument(
        "--steps", type=positive_int, default=10, metavar="N", help="timed steps (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--trace",
        type=as_path_text,
        metavar="FILE",
        help="keep the profiler's trace, a .json or .json.gz",
    )
    parser.add_argument(
        "--kernels",
        type=positive_int,
        metavar="N",
        help="also list the N longest kernels (at most 40)",
    )
    add_num_processes(parser)
    parser.set_defaults(overrides=())
    parser.usage = f"{parser.prog} [CONFIG] [--preset NAME] [--section.key=value ...]"
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Start the measuring process or processes, and return their exit code.

    Raises:
        UserError: there is nothing to measure.
    """
    refuse_nothing(args)
    if args.num_processes is None:
        become_worker(WORKER, worker_arguments(args))
    return launch(args.num_processes, WORKER, worker_arguments(args))


def refuse_nothing(args: argparse.Namespace) -> None:
    """Ask for a model, if there is none.

    Raises:
        UserError: neither a config nor a preset nor a model is given.
    """
    has_model = any(override.startswith("model") for override in args.overrides)
    if args.config is None and args.preset is None and not has_model:
        raise UserError(f"give a run's CONFIG or --preset NAME; presets are {', '.join(PRESETS)}")


def as_overrides(args: argparse.Namespace) -> tuple[str, ...]:
    """What the arguments that are short for config fields say, and the overrides after them."""
    short = {
        "model.preset": args.preset,
        "data.seq_len": args.seq_len,
        "batch.micro_batch_size": args.micro_batch_size,
        "precision.compute": args.precision,
    }
    given = tuple(f"{path}={value}" for path, value in short.items() if value is not None)
    # The config's own shape would win over the preset's.
    other_model = ("model={}",) if args.preset is not None else ()
    return (*other_model, *given, *args.overrides)


def worker_arguments(args: argparse.Namespace) -> list[str]:
    """The same again, as a command line."""
    argv = [] if args.config is None else [args.config]
    argv += [f"--{override}" for override in as_overrides(args)]
    argv.append(f"--steps={args.steps}")
    argv += ["--json"] if args.json else []
    argv += [] if args.trace is None else [f"--trace={args.trace}"]
    argv += [] if args.kernels is None else [f"--kernels={args.kernels}"]
    return argv
