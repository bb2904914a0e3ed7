"""`triax data prepare`: text into shards."""

from __future__ import annotations

import argparse
import time

from rich.console import Console

from triax.common.errors import ExitCode
from triax.data.prepare.corpus import TOKENS_PER_SHARD, prepare
from triax.data.prepare.findings import findings
from triax.data.record import SplitCounts
from triax.launcher.terminal.arguments import add_inputs, add_tokens_per_shard, as_path, utf8
from triax.launcher.terminal.messages import print_warning
from triax.launcher.terminal.progress import show_progress

HELP = "tokenize text into shards"
DESCRIPTION = """\
Tokenize text into training and validation shards (Megatron .bin/.idx).
Interrupted, the same command goes on behind the finished shards."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_inputs(parser)
    parser.add_argument("--tokenizer", type=as_path, required=True, metavar="DIR")
    parser.add_argument("--output", type=as_path, required=True, metavar="DIR")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.01,
        metavar="F",
        help="of documents, of few ones' text (0.01)",
    )
    parser.add_argument(
        "--end-of-text",
        type=utf8,
        metavar="TOKEN",
        help="ends each document (the tokenizer's eos_token)",
    )
    parser.add_argument(
        "--begin-of-text",
        type=utf8,
        metavar="TOKEN",
        help="begins each document (by default none does)",
    )
    add_tokens_per_shard(parser, TOKENS_PER_SHARD)


def run(args: argparse.Namespace) -> int:
    """Prepare, and say what was made.

    Raises:
        UserError: the text, the tokenizer or an argument can't be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    with show_progress() as progress:
        data = prepare(
            args.inputs,
            args.tokenizer,
            args.output,
            num_workers=args.workers,
            validation_fraction=args.validation_fraction,
            text_field=args.text_field,
            tokens_per_shard=args.tokens_per_shard,
            end_of_text=args.end_of_text,
            begin_of_text=args.begin_of_text,
            progress=progress,
        )
    for name, counts in (("train", data.train), ("validation", data.validation)):
        if counts.shards:
            console.print(f"{args.output / name}: {_counted(counts)}", markup=False)
    if data.split is not None and data.split.cut is not None:
        console.print(
            f"document {data.split.cut} is cut in two: its last {data.split.cut_share:.2%} is for "
            "validation"
        )
    for finding in findings(data):
        print_warning(finding)
    console.print(f"{time.monotonic() - began:.1f} s")
    return ExitCode.DONE


def _counted(counts: SplitCounts) -> str:
    shards = "1 shard" if counts.shards == 1 else f"{counts.shards:,} shards"
    return f"{counts.tokens:,} tokens, {counts.documents:,} documents, {shards}"
