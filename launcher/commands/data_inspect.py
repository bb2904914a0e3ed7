"""`triax data inspect`: what shards hold, and the samples of a run as text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from triax.common.errors import ExitCode, UserError
from triax.common.showing import text_for
from triax.data.prepare.inspection import document_text, expected_vocab_size
from triax.data.read.inspection import check_tokens, inspect
from triax.data.read.shards import Shard, find_shards
from triax.launcher.job.samples import RunSamples
from triax.launcher.terminal.arguments import as_path, as_path_text, positive_int
from triax.launcher.terminal.shards import describe_tokens, shards_table

HELP = "check shards and show what they hold"
DESCRIPTION = "Check shards, every token of them, and show what they hold."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "prefix",
        type=as_path_text,
        metavar="PREFIX",
        help="path of .idx files without the ending; with --sample, a run's folder or config",
    )
    parser.add_argument(
        "--tokenizer", type=as_path, metavar="DIR", help="shows text, checks its size"
    )
    parser.add_argument("--document", type=int, metavar="N", help="the one to show, from 0 (0)")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="show the text of a run's sample N, as in events"
    )
    parser.add_argument(
        "--count", type=positive_int, default=1, metavar="N", help="so many samples from there (1)"
    )


def run(args: argparse.Namespace) -> int:
    """Show the shards, or a run's samples.

    Raises:
        UserError: there are none, they are damaged, or what is asked for isn't in them.
    """
    console = Console(highlight=False, soft_wrap=True)
    if args.sample is None:
        _show_shards(args, console)
    else:
        _show_samples(args, console)
    return ExitCode.DONE


def _show_shards(args: argparse.Namespace, console: Console) -> None:
    if args.document is not None and args.tokenizer is None:
        raise UserError(f"--document: {args.document} can't be shown as text; give its --tokenizer")
    shards = [Shard.open(prefix) for prefix in find_shards(args.prefix)]
    console.print(shards_table(args.prefix, inspect(shards)))
    vocab_size = expected_vocab_size(args.prefix, args.tokenizer)
    console.print(describe_tokens(check_tokens(shards, vocab_size), vocab_size))
    if args.tokenizer is not None:
        shown = document_text(shards, args.document or 0, args.tokenizer)
        console.print(f"\n{shown.describe()}\n")
        console.print(text_for(sys.stdout, shown.text), markup=False)


def _show_samples(args: argparse.Namespace, console: Console) -> None:
    samples = RunSamples.open(Path(args.prefix), args.tokenizer)
    for number in range(args.sample, args.sample + args.count):
        shown = samples.read(number)
        console.print(f"sample {number:,}: {shown.describe()}", markup=False)
        console.print(text_for(sys.stdout, shown.text), markup=False)
        console.print()
