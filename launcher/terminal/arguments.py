"""Command-line arguments that several commands have, and their types. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from triax.common.errors import UserError
from triax.common.paths import expand
from triax.common.quantities import format_count, parse_count

_MOST = 1e40


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A number above 0, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = _number(text)
    if not 0 < value < _MOST:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text[:40]!r}")
    return value


def non_negative_float(text: str) -> float:
    """A number of at least 0, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = _number(text)
    if not 0 <= value < _MOST:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text[:40]!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def utf8(text: str) -> str:
    """Text as it is, for argparse's `type`. Bytes that are no UTF-8 come as lone surrogates, which
    nothing but a path can hold.

    Raises:
        argparse.ArgumentTypeError: it has such bytes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("expected text in UTF-8, got other bytes") from None
    return text


def torch_seed(text: str) -> int:
    """A whole number of at least 0 and below 2^64, as torch's generators take it.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**64):
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least 0 and below 2^64, got {text[:40]!r}"
        )
    return int(text)


def as_path(text: str) -> Path:
    """A path by the rule of `expand`, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def as_path_text(text: str) -> str:
    """As `as_path`, where text is wanted."""
    return str(as_path(text))


def count(text: str) -> int:
    """A whole number of at least 0, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def large_count(text: str) -> int:
    """A count such as 32000 or 32k, for argparse's `type`."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Declare where a command's text is, as `inputs` and `text_field`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, glob, `datasets` name (NAME or NAME:CONFIG) or python-stdlib",
    )
    parser.add_argument(
        "--text-field",
        type=utf8,
        default="text",
        metavar="F",
        help="field of JSON lines and rows (text)",
    )


def add_num_processes(parser: argparse._ActionsContainer) -> None:
    """Declare how many processes a command starts here, as `num_processes`; none is one."""
    parser.add_argument(
        "--nproc-per-node",
        "--nproc",
        dest="num_processes",
        type=positive_int,
        metavar="N",
        help="start N processes on this machine, one for each GPU (default: one process)",
    )


def add_tokens_per_shard(parser: argparse.ArgumentParser, default: int) -> None:
    """Declare how large shards become, as `tokens_per_shard`."""
    parser.add_argument(
        "--tokens-per-shard",
        type=large_count,
        default=default,
        metavar="N",
        help=f"for instance 500M ({format_count(default)})",
    )
