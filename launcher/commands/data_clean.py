"""`triax data clean`: documents through a recipe's steps, with a report of what was dropped."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from triax.common.errors import ExitCode
from triax.common.showing import printable
from triax.data.clean.clean import Progress as ProgressCallback
from triax.data.clean.clean import clean
from triax.data.clean.statistics import Statistics
from triax.launcher.config.recipe import load_recipe
from triax.launcher.terminal.arguments import add_inputs, as_path, positive_int

HELP = "filter and deduplicate documents by a recipe"
DESCRIPTION = (
    "Take documents through a recipe's steps (docs/cleaning.md).\n"
    "Interrupted, the same command goes on behind the finished pieces."
)
_SECONDS_BETWEEN_LINES = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_inputs(parser)
    parser.add_argument("--output", type=as_path, required=True, metavar="DIR")
    parser.add_argument("--recipe", type=as_path, required=True, metavar="FILE")
    parser.add_argument("--workers", type=positive_int, metavar="N", help="processes (one a core)")


def run(args: argparse.Namespace) -> int:
    """Clean, and show what each step did."""
    console = Console(highlight=False, soft_wrap=True)
    recipe = load_recipe(args.recipe)
    began = time.monotonic()
    with _progress() as progress:
        statistics = clean(
            args.inputs,
            recipe,
            args.output,
            text_field=args.text_field,
            num_workers=args.workers,
            progress=progress,
        )
    console.print(_table(statistics))
    console.print(f"{args.output / 'documents'}, {args.output / 'report.html'}", markup=False)
    console.print(f"{time.monotonic() - began:.1f} s")
    return ExitCode.DONE


def _table(statistics: Statistics) -> Table:
    table = Table()
    for name in ("step", "documents", "dropped", "characters"):
        table.add_column(name, justify="left" if name == "step" else "right")
    read = statistics.read
    table.add_row("read", f"{read.documents:,}", "", f"{read.characters:,}")
    for name, counts in statistics.steps.items():
        dropped = counts.documents_in - counts.documents_out
        table.add_row(
            Text(printable(name)),
            f"{counts.documents_out:,}",
            f"{dropped:,}",
            f"{counts.characters_out:,}",
        )
    return table


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """A bar with the time left on stderr; a plain line now and then where is no terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _PlainProgress(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {}

        def update(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=share)

        yield update


class _PlainProgress:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed = time.monotonic()

    def __call__(self, stage: str, share: float) -> None:
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self._console.print(f"{stage}: {share:.0%}")
