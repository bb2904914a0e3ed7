"""`triax data verify`: whether shards are as they were prepared."""

from __future__ import annotations

import argparse

from rich.console import Console

from triax.common.errors import ExitCode
from triax.common.showing import printable
from triax.data.read.integrity import verify_dataset

HELP = "compare shards with their checksums"
DESCRIPTION = "Read every byte of shards and compare it with the checksums in data.json."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "prefixes", nargs="+", metavar="PREFIX", help="path of .idx files without the ending"
    )


def run(args: argparse.Namespace) -> int:
    """Say of every dataset what is damaged; `ExitCode.BAD_INPUT` if something is.

    Raises:
        UserError: there is no such dataset.
    """
    console = Console(highlight=False, soft_wrap=True)
    code = ExitCode.DONE
    for prefix in args.prefixes:
        found = verify_dataset(prefix)
        for line in found.problems:
            code = ExitCode.BAD_INPUT
            console.print(printable(line), markup=False)
        if found.num_known and not found.problems:
            console.print(
                f"{prefix}: {found.num_known} files are as they were prepared", markup=False
            )
        if found.num_unknown:
            console.print(
                f"{prefix}: {found.num_unknown} files can't be verified, no data.json beside them "
                "has their checksums (`triax data prepare` writes it; Megatron's tools don't)",
                markup=False,
            )
    return code
