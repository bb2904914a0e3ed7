"""`triax tokenizer`: a byte-level BPE from text, or from another library's files."""

from __future__ import annotations

import argparse
import time

from triax.common.errors import ExitCode, UserError
from triax.common.files import is_file
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.split_patterns import PATTERNS
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer, vocabulary_size
from triax.data.prepare.tokenizer_formats import import_tokenizer
from triax.launcher.terminal.arguments import add_inputs, as_path, large_count, utf8

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
        help="train a byte-level BPE",
        description="Train a byte-level BPE and write tokenizer.json and tokenizer_config.json.",
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
        "--chat",
        action="store_true",
        help="reserve a token for each role of conversations: <|user|>, <|assistant|>, ...",
    )

    _add_import(actions)


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
    importing.add_argument(
        "--special-token",
        type=utf8,
        action="append",
        default=[],
        metavar="T",
        help="append it; may be given again; the first ends documents",
    )


def run(args: argparse.Namespace) -> int:
    """Train or import, and say where the tokenizer is."""
    return _train(args) if args.action == "train" else _import(args)


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
    path = train_tokenizer(
        args.inputs, args.vocab_size, args.output, args.text_field, for_chat=args.chat
    )
    size = vocabulary_size(load_tokenizer(path))
    print(f"{path}: {size:,} tokens, {time.monotonic() - began:.1f} s")
    return ExitCode.DONE
