"""How far the tokenizing is, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from triax.common.quantities import format_count
from triax.data.prepare.corpus import ProgressCallback

_SECONDS_BETWEEN_LINES = 10.0


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
