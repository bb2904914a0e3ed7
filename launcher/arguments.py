"""Command-line arguments that several commands have, and their types. Imports nothing heavy."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse's `type`."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 0, for argparse's `type`."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def add_num_processes(parser: argparse.ArgumentParser) -> None:
    """Declare how many processes a command starts here, as `num_processes`; none is one."""
    parser.add_argument(
        "--nproc-per-node",
        "--nproc",
        dest="num_processes",
        type=positive_int,
        metavar="N",
        help="start N processes on this machine, one for each GPU (default: one process)",
    )
