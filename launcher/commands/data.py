"""`triax data`: `clean` text, `prepare` shards of it, `inspect` and `verify` them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from triax.common.errors import ExitCode, UserError
from triax.common.quantities import format_count, parse_count
from triax.common.showing import printable, text_for
from triax.data.prepare.corpus import TOKENS_PER_SHARD, ProgressCallback, prepare
from triax.data.prepare.findings import findings
from triax.data.prepare.tokenizer import decode, load_tokenizer, vocabulary_size
from triax.data.read.integrity import KnownFile, known_files, verify
from triax.data.read.shards import Shard, find_shards
from triax.data.record import SplitCounts, load_prepared
from triax.launcher.commands.data_clean import EXAMPLE as CLEAN_EXAMPLE
from triax.launcher.commands.data_clean import add_clean, run_clean
from triax.launcher.job.samples import RunSamples
from triax.launcher.terminal.arguments import as_path, as_path_text, positive_int, utf8
from triax.launcher.terminal.messages import print_warning

_EXAMPLE = """\
examples:
  triax data prepare corpus/ --tokenizer tokenizer --output data
  triax data inspect data/train --tokenizer tokenizer --document 3
  triax data inspect runs/quickstart --sample 4096 --count 8
  triax data verify data/train data/validation
"""
_QUANTILES = {"shortest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "longest": 1.0}
_SECONDS_BETWEEN_LINES = 10.0
_EXCERPT_TOKENS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `clean`, `prepare`, `inspect` and `verify` and their arguments."""
    parser.epilog = _EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_prepare(
        actions.add_parser(
            "prepare",
            help="tokenize text into shards",
            description="Tokenize text into training and validation shards (Megatron .bin/.idx).\n"
            "Interrupted, the same command goes on behind the finished shards.",
            epilog=_EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    add_clean(
        actions.add_parser(
            "clean",
            help="filter and deduplicate documents by a recipe",
            description="Take documents through a recipe's steps (docs/cleaning.md).\n"
            "Interrupted, the same command goes on behind the finished pieces.",
            epilog=CLEAN_EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_inspect(
        actions.add_parser(
            "inspect",
            help="check shards and show what they hold",
            description="Check shards, every token of them, and show what they hold.",
            epilog=_EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )

    verify = actions.add_parser(
        "verify",
        help="compare shards with their checksums",
        description="Read every byte of shards and compare it with the checksums in data.json.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument(
        "prefixes", nargs="+", metavar="PREFIX", help="path of .idx files without the ending"
    )


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, glob, `datasets` name (NAME or NAME:CONFIG) or python-stdlib",
    )
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
        "--text-field",
        type=utf8,
        default="text",
        metavar="F",
        help="field of JSON lines and rows (text)",
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
    parser.add_argument(
        "--tokens-per-shard",
        default=TOKENS_PER_SHARD,
        metavar="N",
        help=f"for instance 500M ({format_count(TOKENS_PER_SHARD)})",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
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
    """Clean, prepare, inspect or verify; `verify` ends with `ExitCode.BAD_INPUT` at damage."""
    console = Console(highlight=False, soft_wrap=True)
    if args.action == "clean":
        return run_clean(args)
    if args.action == "verify":
        return _verify(args.prefixes, console)
    if args.action == "prepare":
        _prepare(args, console)
    elif args.sample is not None:
        _show_samples(args, console)
    else:
        _inspect(args, console)
    return ExitCode.DONE


def _prepare(args: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    with show_progress() as progress:
        data = prepare(
            args.inputs,
            args.tokenizer,
            args.output,
            num_workers=args.workers,
            validation_fraction=args.validation_fraction,
            text_field=args.text_field,
            tokens_per_shard=_count(args.tokens_per_shard),
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


def _counted(counts: SplitCounts) -> str:
    shards = "1 shard" if counts.shards == 1 else f"{counts.shards:,} shards"
    return f"{counts.tokens:,} tokens, {counts.documents:,} documents, {shards}"


def _count(text: str | int) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise UserError(f"--tokens-per-shard: {error}") from None


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """A line on stderr that grows; a plain line now and then where there is no terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _PlainProgress(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tokenizing")
        began = time.monotonic()

        def update(num_documents: int, num_tokens: int) -> None:
            bar.update(task, description=_progress_line(num_documents, num_tokens, began))

        yield update


class _PlainProgress:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._printed = time.monotonic()

    def __call__(self, num_documents: int, num_tokens: int) -> None:
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self._console.print(_progress_line(num_documents, num_tokens, self._began))


def _progress_line(num_documents: int, num_tokens: int, began: float) -> str:
    rate = num_tokens / max(time.monotonic() - began, 1e-6)
    return (
        f"tokenized {num_documents:,} documents, {format_count(num_tokens)} tokens, "
        f"{format_count(rate)} tokens/s"
    )


def _inspect(args: argparse.Namespace, console: Console) -> None:
    if args.document is not None and args.tokenizer is None:
        raise UserError(f"--document: {args.document} can't be shown as text; give its --tokenizer")
    shards = [Shard.open(prefix) for prefix in find_shards(args.prefix)]
    console.print(_table(args.prefix, shards))
    _check_tokens(shards, _vocab_size(args), console)
    if args.tokenizer is not None:
        _show_document(shards, args.document or 0, args.tokenizer, console)


def _verify(prefixes: list[str], console: Console) -> int:
    """Say of every dataset what is damaged; all of it, not the first alone."""
    code = ExitCode.DONE
    for prefix in prefixes:
        known, unknown = known_files(prefix)
        problems = [problem for file in known if (problem := _problem(file)) is not None]
        for line in problems:
            code = ExitCode.BAD_INPUT
            console.print(printable(line), markup=False)
        if known and not problems:
            console.print(f"{prefix}: {len(known)} files are as they were prepared", markup=False)
        if unknown:
            console.print(
                f"{prefix}: {len(unknown)} files can't be verified, no data.json beside them has "
                "their checksums (`triax data prepare` writes it; Megatron's tools don't)",
                markup=False,
            )
    return code


def _problem(file: KnownFile) -> str | None:
    try:
        verify([file])
    except UserError as error:
        return str(error)
    return None


def _show_samples(args: argparse.Namespace, console: Console) -> None:
    samples = RunSamples.open(Path(args.prefix), args.tokenizer)
    for number in range(args.sample, args.sample + args.count):
        shown = samples.read(number)
        console.print(
            f"sample {number:,}: {printable(shown.source)}, window {shown.window:,}, "
            f"epoch {shown.epoch}, {shown.num_documents} documents",
            markup=False,
        )
        console.print(text_for(sys.stdout, shown.text), markup=False)
        console.print()


def _table(prefix: str, shards: list[Shard]) -> Table:
    lengths = np.concatenate([shard.document_lengths() for shard in shards])
    table = Table(title=Text(printable(Path(prefix).name)), show_header=False, width=60)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("shards", f"{len(shards):,}")
    table.add_row("dtype", ", ".join(sorted({shard.dtype.name for shard in shards})))
    table.add_row("tokens", f"{sum(shard.num_tokens for shard in shards):,}")
    table.add_row("documents", f"{len(lengths):,}", end_section=True)
    for name, quantile in _QUANTILES.items():
        length = int(np.quantile(lengths, quantile, method="nearest"))
        table.add_row(f"document length, {name}", f"{length:,}")
    table.add_row("document length, mean", f"{lengths.mean():,.1f}")
    return table


def _vocab_size(args: argparse.Namespace) -> int | None:
    """From the tokenizer, else from the `data.json` beside the shards."""
    if args.tokenizer is not None:
        return vocabulary_size(load_tokenizer(args.tokenizer))
    data = load_prepared(Path(args.prefix).parent)
    return None if data is None else data.vocab_size


def _check_tokens(shards: list[Shard], vocab_size: int | None, console: Console) -> None:
    smallest, largest = 0, 0
    for shard in shards:
        low, high = shard.token_range()
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            raise UserError(
                f"{shard.prefix}: tokens from {low:,} to {high:,}, expected 0 to "
                f"{'...' if vocab_size is None else f'{vocab_size - 1:,}'}; these shards were made "
                "with another tokenizer, or are damaged: prepare them anew"
            )
        smallest, largest = min(smallest, low), max(largest, high)
    if vocab_size is None:
        console.print(
            f"all tokens are 0 to {largest:,}; no data.json beside the shards says the vocabulary "
            "(give --tokenizer to check it)"
        )
    else:
        console.print(f"all tokens are below the vocabulary's {vocab_size:,}")


def _show_document(shards: list[Shard], document: int, tokenizer: Path, console: Console) -> None:
    number = document
    for shard in shards:
        if 0 <= number < shard.num_documents:
            start = shard.document_start(number)
            length = shard.document_start(number + 1) - start
            tokens = shard.read(start, min(length, _EXCERPT_TOKENS))
            text = decode(load_tokenizer(tokenizer), tokens.tolist(), skip_special_tokens=False)
            more = "" if length <= _EXCERPT_TOKENS else f", the first {_EXCERPT_TOKENS}"
            console.print(f"\ndocument {document:,}: {length:,} tokens{more}\n")
            console.print(text_for(sys.stdout, text), markup=False)
            return
        number -= shard.num_documents
    total = sum(shard.num_documents for shard in shards)
    raise UserError(f"--document: {document}, expected 0 to {total - 1:,}")
