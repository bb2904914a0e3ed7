"""What the person at the terminal sees: a progress bar, or plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from triax.common.quantities import format_count, format_seconds
from triax.training.records.metrics import SHOWN, Row

_SECONDS_BETWEEN_LINES = 10.0
_SMOOTHING = 0.9


class Console:
    """Shows progress and messages of rank 0; the others are silent.

    A context manager: the bar lives inside of it.

    Args:
        num_steps: the run's length.
        first_step: steps that are done already.
        tokens_per_step: sequences x seq_len.
        enabled: whether this process may talk.
    """

    def __init__(
        self, num_steps: int, first_step: int, tokens_per_step: int, *, enabled: bool
    ) -> None:
        self._enabled = enabled
        self._rich = RichConsole(quiet=not enabled, highlight=False, soft_wrap=True)
        self._num_steps = num_steps
        self._tokens_per_step = tokens_per_step
        self._rate: float | None = None
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._progress: Progress | None = None
        if enabled and self._rich.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=self._rich,
                expand=True,
            )
            self._task = self._progress.add_task(
                "first step ...", total=num_steps, completed=first_step
            )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._rich.print(message, markup=False)

    def show(self, row: Row) -> None:
        """Show a step."""
        if not self._enabled:
            return
        step = int(row["step"] or 0)
        text = self._describe(row, step)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._num_steps:
            self._last_line = now
            self._rich.print(f"step {step}/{self._num_steps}  {text}", markup=False)

    def _describe(self, row: Row, step: int) -> str:
        rate = float(row["tokens_per_second"] or 0)
        self._rate = (
            rate if self._rate is None else _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate
        )
        left = (self._num_steps - step) * self._tokens_per_step / max(self._rate, 1e-9)
        loss = "no targets" if row["loss"] is None else f"loss {row['loss']:.4f}"
        parts = [loss, f"{format_count(self._rate)} tok/s"]
        if row["mfu"] is not None:
            parts.append(f"MFU {row['mfu']:.1%}")
        if row["skipped"]:
            parts.append("skipped")
        parts += [
            shown.console.format(row[shown.name])
            for shown in SHOWN
            if shown.console is not None and row.get(shown.name) is not None
        ]
        return "  ".join([*parts, f"{format_seconds(left)} left"])

    def __enter__(self) -> Console:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
