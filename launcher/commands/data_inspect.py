"""`triax data inspect`: what shards and documents hold, and the samples of a run as text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from triax.common.errors import ExitCode, UserError
from triax.common.files import is_file, is_folder
from triax.common.showing import text_for
from triax.data.prepare.inspection import (
    document_text,
    expected_vocab_size,
    inspect_documents,
    prepared_from,
)
from triax.data.read.inspection import check_tokens, inspect, num_duplicates
from triax.data.read.shard_index import with_suffix
from triax.data.read.shards import Shard, find_shards
from triax.launcher.job.samples import RunSamples
from triax.launcher.terminal.arguments import as_path, as_path_text, positive_int
from triax.launcher.terminal.shards import (
    bars,
    describe_duplicates,
    describe_tokens,
    documents_table,
    inputs_lines,
    length_bars,
    shards_table,
)

HELP = "check shards or documents and show what they hold"
DESCRIPTION = """\
Check shards, every token of them, or read documents, such as those that
`data clean` wrote, and show what they hold: lengths, languages, sources,
duplicates.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "prefix",
        type=as_path_text,
        metavar="PREFIX",
        help="path of .idx files without the ending, or documents as `data prepare` takes them; "
        "with --sample, a run's folder or config",
    )
    parser.add_argument(
        "--tokenizer", type=as_path, metavar="DIR", help="shows text, checks its size"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="of documents' rows (text)"
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
    if args.sample is not None:
        _show_samples(args, console)
    elif _is_text(Path(args.prefix)):
        _show_documents(args, console)
    else:
        _show_shards(args, console)
    return ExitCode.DONE


def _is_text(path: Path) -> bool:
    """Whether a path is documents: a file, or a folder in which no shards lie."""
    if is_file(with_suffix(path, ".idx")):
        return False
    return is_file(path) or (is_folder(path) and not any(path.glob("*.idx")))


def _show_documents(args: argparse.Namespace, console: Console) -> None:
    if args.document is not None or args.tokenizer is not None:
        raise UserError(
            f"{args.prefix}: documents, not shards: --document and --tokenizer are for shards; "
            "leave them out"
        )
    found = inspect_documents(args.prefix, args.text_field)
    if args.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=True))
        return
    console.print(documents_table(args.prefix, found))
    lines = length_bars("characters", found.histogram)
    lines += bars("documents by language", found.languages) if found.languages else []
    lines += bars("documents by source", found.sources)
    console.print(text_for(sys.stdout, "\n".join(lines)), markup=False)


def _show_shards(args: argparse.Namespace, console: Console) -> None:
    if args.document is not None and args.tokenizer is None:
        raise UserError(f"--document: {args.document} can't be shown as text; give its --tokenizer")
    shards = [Shard.open(prefix) for prefix in find_shards(args.prefix)]
    contents, origin = inspect(shards), prepared_from(args.prefix)
    vocab_size = expected_vocab_size(args.prefix, args.tokenizer)
    largest, repeated = check_tokens(shards, vocab_size), num_duplicates(shards)
    if args.json:
        found = {"num_duplicates": repeated, "largest_token": largest, "vocab_size": vocab_size}
        print(json.dumps(contents.to_json() | found | origin, indent=2, ensure_ascii=True))
        return
    console.print(shards_table(args.prefix, contents))
    lines = length_bars("tokens", contents.histogram)
    lines.append(describe_duplicates(repeated, contents.num_documents))
    lines += inputs_lines(origin["inputs"]) if origin else []
    console.print(text_for(sys.stdout, "\n".join(lines)), markup=False)
    console.print(describe_tokens(largest, vocab_size))
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
