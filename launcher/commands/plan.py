"""`triax plan`: memory, speed, length and price of a run before any GPU is there, and its best
layout. Imports no torch."""

from __future__ import annotations

import argparse

from triax.common.errors import ExitCode, UserError
from triax.common.quantities import parse_count
from triax.launcher.plan.plan import advise, plan
from triax.launcher.terminal.arguments import (
    as_path,
    as_path_text,
    non_negative_float,
    positive_float,
    positive_int,
)
from triax.models.presets import PRESETS
from triax.planning.devices import RESERVED_GIB

EXAMPLE = """\
examples:
  triax plan run.toml --gpus 256 --gpu h100
  triax plan --preset llama3-70b --gpus 256 --gpu h100 --output plan.toml
  triax plan run.toml --gpus 64 --gpu a100 --as-is --explain
  triax plan --preset llama3-8b --gpus 64 --days 10 --picture plan.png
  triax plan --flops 1e23
  triax plan --gpus 512 --gpu h100 --days 30

Every layout of the processes is tried; those that fit and that `triax check`
accepts are ranked by speed, and below each stands why it isn't the first. With
--output the first is written as a run file. Without CONFIG and --preset there
is only advice: which size of model the compute is best spent on. How figures
come about, and how far they are off measured ones: docs/planning.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("config", type=as_path_text, metavar="CONFIG", nargs="?", help="a run's TOML file")
    add("--preset", metavar="NAME", help=f"the model, instead of CONFIG: {', '.join(PRESETS)}")
    add("--gpus", type=positive_int, metavar="N", help="how many, over all nodes")
    add("--gpu", default="h100", metavar="NAME", help="which: h100, h200, a100, ... (h100)")
    machine = parser.add_argument_group("the machine, where it differs from NVIDIA's DGX")
    for option, what in (
        ("--gpus-per-node", "GPUs that the fast link joins"),
        ("--memory-gib", "of a GPU"),
        ("--reserved-gib", f"of it CUDA's and NCCL's own ({RESERVED_GIB:g})"),
        ("--link-gbs", "GB/s of a GPU to others of the node, one direction"),
        ("--fabric-gbs", "GB/s of a GPU's share of the network, one direction"),
        ("--storage-gbs", "GB/s that a node writes checkpoints with (2)"),
    ):
        kind = positive_int if option == "--gpus-per-node" else positive_float
        kind = non_negative_float if option == "--reserved-gib" else kind
        machine.add_argument(option, type=kind, metavar="X", help=what)
    length = parser.add_argument_group("the length; CONFIG's budget, or 20 tokens a parameter")
    length.add_argument("--tokens", type=token_count, metavar="COUNT", help="such as 15T")
    length.add_argument("--days", type=positive_float, metavar="D", help="as long as this")
    length.add_argument("--flops", type=positive_float, metavar="F", help="such as 1e23")
    length.add_argument(
        "--budget-usd", type=positive_float, metavar="USD", help="as far as it goes"
    )
    length.add_argument(
        "--usd-per-gpu-hour", type=positive_float, metavar="USD", help="shows the price"
    )
    length.add_argument(
        "--mfu", type=positive_float, default=0.4, help="where only advice is asked for (0.4)"
    )
    add("--seq-len", type=positive_int, metavar="N", help="with --preset: tokens a sequence (8192)")
    add("--batch", type=positive_int, metavar="N", help="with --preset: sequences an update")
    add("--precisions", metavar="A,B", help="also search over these, such as bf16,fp8")
    add("--as-is", action="store_true", help="forecast CONFIG's own layout, search none")
    add("--top", type=positive_int, default=8, metavar="N", help="layouts to list (8)")
    add("--explain", action="store_true", help="show each figure's formula and source")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--output", type=as_path, metavar="FILE", help="write the best layout's run file")
    add("--picture", type=as_path, metavar="FILE", help="draw memory and time, a .png or .svg")
    parser.set_defaults(overrides=())
    parser.usage = f"{parser.prog} [CONFIG] --gpus N --gpu NAME [--section.key=value ...]"
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Plan, or advise where there is no model.

    Raises:
        UserError: arguments are missing or don't fit, or no layout fits.
    """
    if args.config is not None and args.preset is not None:
        raise UserError("give CONFIG or --preset, not both; --model.preset=NAME changes CONFIG's")
    if args.config is None and args.preset is None:
        advise(args)
    else:
        plan(args)
    return ExitCode.DONE


def token_count(text: str) -> int:
    """A count such as 15T, for argparse's `type`."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
