"""A diagnosis as a person reads it. Imports no torch."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triax.common.quantities import format_seconds
from triax.common.showing import printable
from triax.training.stability.diagnosis import Diagnosis, Process


def print_diagnosis(run_dir: Path, diagnosis: Diagnosis, console: Console) -> None:
    """Show the run, its processes, its last events, the likely cause and what to do."""
    console.print(f"{run_dir}: {_safe(diagnosis.headline)}", markup=False)
    if diagnosis.processes:
        console.print(_table(diagnosis.processes))
    _print_events(diagnosis, console)
    console.print(f"\nlikely cause: {_safe(diagnosis.cause)}", markup=False)
    for number, advice in enumerate(diagnosis.advice, start=1):
        console.print(
            f"{'what to do:  ' if number == 1 else '             '} {advice}", markup=False
        )


def _table(processes: list[Process]) -> Table:
    table = Table()
    for name in ("rank", "host", "step", "state", "doing", "for", "where or why"):
        table.add_column(name, justify="right" if name in ("rank", "step") else "left")
    for process in processes:
        beat = process.heartbeat
        table.add_row(
            str(beat.rank), Text(printable(beat.host)), str(beat.step), process.fate,
            Text(printable(beat.activity)), format_seconds(beat.time - beat.since),
            Text(printable(process.error or process.place)),
        )  # fmt: skip
    return table


def _print_events(diagnosis: Diagnosis, console: Console) -> None:
    if diagnosis.num_unreadable:
        console.print(f"{diagnosis.num_unreadable} lines of events.jsonl can't be read: left out")
    if diagnosis.events:
        console.print("\nlast events:")
    for event in diagnosis.events:
        rest = ", ".join(
            f"{name} {value}" for name, value in event.items() if name not in ("event", "time")
        )
        told = printable(f"{event['event']}: {rest}")
        console.print(f"  {_when(event.get('time'))}  {told}", markup=False)


def _when(seconds: object) -> str:
    """Seconds since 1970 as a person's time, as far as it is one."""
    try:
        moment = time.localtime(seconds if isinstance(seconds, int | float) else math.nan)
    except (ValueError, OverflowError, OSError):
        return f"{'?':19}"
    return time.strftime("%Y-%m-%d %H:%M:%S", moment)


def _safe(text: str) -> str:
    """The text with its line breaks, and nothing else that a terminal would obey."""
    return "\n".join(map(printable, text.split("\n")))
