"""`triax tokenizer`: train one from text, take over another library's, compare several."""

from __future__ import annotations

import argparse
import json
import sys
import time

from rich.console import Console

from triax.common.errors import ExitCode, UserError
from triax.common.files import is_file
from triax.data.prepare.compare_tokenizers import compare, grouped_texts
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.split_patterns import PATTERNS
from triax.data.prepare.tokenizer import (
    ROLE_TOKENS,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from triax.data.prepare.tokenizer_formats import import_tokenizer
from triax.data.prepare.unigram import train_unigram
from triax.launcher.terminal.arguments import add_inputs, as_path, large_count, utf8
from triax.launcher.terminal.tokenizers import comparison_table, save_comparison

_EXAMPLE = """\
INPUT is a file (text, .jsonl or .parquet, plain or compressed), a folder, a
glob, a `datasets` name (NAME or NAME:CONFIG), or python-stdlib.

example:
  triax tokenizer train corpus/*.jsonl --vocab-size 32000 --output tokenizer
"""
_IMPORT_EXAMPLE = """\
PATH is a folder that holds vocab.json and merges.txt (GPT-2, Qwen), a file of
tiktoken, or a SentencePiece model. The ids are those of the original library.

example:
  triax tokenizer import llama3/tokenizer.model --pattern cl100k \\
      --special-token '<|end_of_text|>' --output tokenizer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `train` and its arguments."""
    parser.epilog = _EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser(
        "train",
        help="train a byte-level BPE or a Unigram model",
        description="Train a tokenizer and write tokenizer.json and tokenizer_config.json.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_inputs(train)
    train.add_argument(
        "--vocab-size", type=large_count, required=True, metavar="N", help="at least 257, as 32k"
    )
    train.add_argument(
        "--output", type=as_path, required=True, metavar="DIR", help="folder to write"
    )
    train.add_argument(
        "--model",
        choices=("bpe", "unigram"),
        default="bpe",
        help="byte-level BPE, or Unigram (bpe)",
    )
    train.add_argument(
        "--pattern",
        choices=sorted(PATTERNS),
        help="how BPE splits text into words (gpt2); cl100k and o200k split digits in threes",
    )
    train.add_argument(
        "--split-digits", action="store_true", help="each digit is a token (BPE: pattern qwen2)"
    )
    train.add_argument(
        "--chat",
        action="store_true",
        help="reserve a token for each role of conversations: <|user|>, <|assistant|>, ...",
    )
    _add_special_tokens(train, "reserve it; may be given again")
    _add_import(actions)
    _add_compare(actions)


def _add_special_tokens(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument(
        "--special-token", type=utf8, action="append", default=[], metavar="T", help=help_text
    )


def _add_compare(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    comparing = actions.add_parser(
        "compare",
        help="compare tokenizers on texts",
        description="Say how many bytes a token of each tokenizer has, how fast it encodes, and "
        "whether its tokens give back the text.",
    )
    add_inputs(comparing)
    comparing.add_argument(
        "--tokenizer",
        type=as_path,
        action="append",
        required=True,
        metavar="DIR",
        help="one to compare; given again for each",
    )
    comparing.add_argument(
        "--by", choices=("source", "language"), default="source", help="group texts by (source)"
    )
    comparing.add_argument(
        "--characters",
        type=large_count,
        default=2_000_000,
        metavar="N",
        help="the first so many of each group (2M)",
    )
    comparing.add_argument("--plot", type=as_path, metavar="PNG", help="draw it, too")
    comparing.add_argument("--json", action="store_true", help="print the figures as JSON")


def _add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    importing = actions.add_parser(
        "import",
        help="make a tokenizer.json of another format",
        description="Make a tokenizer.json of GPT-2's, tiktoken's or SentencePiece's files.",
        epilog=_IMPORT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    importing.add_argument("path", type=as_path, metavar="PATH", help="folder or file to read")
    importing.add_argument(
        "--output", type=as_path, required=True, metavar="DIR", help="folder to write"
    )
    importing.add_argument(
        "--pattern", choices=sorted(PATTERNS), help="how text is split into words"
    )
    _add_special_tokens(importing, "append it; may be given again; the first ends documents")


def run(args: argparse.Namespace) -> int:
    """Do what is asked for, and say where the tokenizer is."""
    return {"train": _train, "import": _import, "compare": _compare}[args.action](args)


def _compare(args: argparse.Namespace) -> int:
    groups = grouped_texts(args.inputs, args.text_field, args.by, args.characters)
    found = compare(args.tokenizer, groups)
    if args.json:
        print(json.dumps([each.to_json() for each in found], indent=2))
    else:
        console = Console(highlight=False, width=80, file=sys.stdout)
        console.print(comparison_table(found))
    if args.plot is not None:
        save_comparison(found, args.plot)
        print(f"{args.plot}: the same as a picture", file=sys.stderr)
    return ExitCode.DONE


def _import(args: argparse.Namespace) -> int:
    path = import_tokenizer(args.path, args.output, args.pattern, args.special_token)
    end = document_tokens(path).end.name
    size = vocabulary_size(load_tokenizer(path))
    print(f"{path}: {size:,} tokens, documents end with {end}")
    return ExitCode.DONE


def _train(args: argparse.Namespace) -> int:
    if is_file(args.output / "tokenizer.json"):
        raise UserError(
            f"{args.output}: holds a tokenizer.json already, and data made with it would be of no "
            "more use; give another --output, or remove it"
        )
    began = time.monotonic()
    print(f"training a tokenizer of {args.vocab_size:,} tokens", flush=True)
    if args.pattern is not None and (args.model == "unigram" or args.split_digits):
        raise UserError(
            f"--pattern: {args.pattern}, but --split-digits and --model unigram split text by "
            "themselves; leave one of the two out"
        )
    special_tokens = (*(ROLE_TOKENS if args.chat else ()), *args.special_token)
    if args.model == "unigram":
        path = train_unigram(
            args.inputs, args.vocab_size, args.output, args.text_field,
            split_digits=args.split_digits, special_tokens=special_tokens,
        )  # fmt: skip
    else:
        pattern = "qwen2" if args.split_digits else args.pattern or "gpt2"
        path = train_tokenizer(
            args.inputs, args.vocab_size, args.output, args.text_field,
            pattern=pattern, special_tokens=special_tokens,
        )  # fmt: skip
    size = vocabulary_size(load_tokenizer(path))
    print(f"{path}: {size:,} tokens, {time.monotonic() - began:.1f} s")
    return ExitCode.DONE
