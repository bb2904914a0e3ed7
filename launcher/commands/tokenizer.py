"""`triax tokenizer train`: a byte-level BPE from text."""

from __future__ import annotations

import argparse
import time

from triax.common.errors import ExitCode
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer, vocabulary_size
from triax.launcher.terminal.arguments import as_path, utf8

_EXAMPLE = """\
INPUT is a file (text, .jsonl or .parquet, plain or compressed), a folder, a
glob, a `datasets` name (NAME or NAME:CONFIG), or python-stdlib.

example:
  triax tokenizer train corpus/*.jsonl --vocab-size 32000 --output tokenizer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `train` and its arguments."""
    parser.epilog = _EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser(
        "train",
        help="train a byte-level BPE",
        description="Train a byte-level BPE and write tokenizer.json and tokenizer_config.json.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("inputs", nargs="+", metavar="INPUT", help="where the text is")
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="at least 257")
    train.add_argument(
        "--output", type=as_path, required=True, metavar="DIR", help="folder to write"
    )
    train.add_argument(
        "--text-field",
        type=utf8,
        default="text",
        metavar="F",
        help="field of JSON lines and rows (text)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, and say where the tokenizer is."""
    began = time.monotonic()
    print(f"training a tokenizer of {args.vocab_size:,} tokens", flush=True)
    path = train_tokenizer(args.inputs, args.vocab_size, args.output, args.text_field)
    size = vocabulary_size(load_tokenizer(path))
    print(f"{path}: {size:,} tokens, {time.monotonic() - began:.1f} s")
    return ExitCode.DONE
