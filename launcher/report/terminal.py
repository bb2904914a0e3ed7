"""A run on a terminal, also over ssh: its loss as a line of blocks, speed, time left, events."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from triax.common.quantities import format_count, format_seconds
from triax.common.showing import printable
from triax.launcher.report.buckets import bucket_starts, smoothed, thin
from triax.launcher.report.records import Column, RunRecord
from triax.launcher.report.story import facts, layout_picture

_BLOCKS = "▁▂▃▄▅▆▇█"
_RECENT = 50
"""Rows whose median is the speed now."""


def sparkline(values: Column, width: int) -> str:
    """At most `width` blocks, higher for higher means of their values; spaces where there are
    none."""
    means = thin(values, bucket_starts(len(values), width)).mean
    known = means[~np.isnan(means)]
    if not len(known):
        return ""
    low, high = float(known.min()), float(known.max())
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if v != v else _BLOCKS[round((v - low) * scale)] for v in means.tolist())


def draw(record: RunRecord, num_steps: int | None, width: int, height: int) -> Panel:
    """The whole picture.

    Args:
        num_steps: the run's length; None where its config can't be read.
        width, height: of the terminal, in characters.
    """
    inner = max(20, width - 4)
    table = Table.grid(padding=(0, 2))
    rows = [*facts(record), *_pace(record, num_steps)]
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(printable(value)))
    parts: list[Table | Text] = [table, Text("")]
    for name in ("loss", "grad_norm", "tokens_per_second"):
        column = record.columns.get(name)
        if column is not None and len(column):
            shown = smoothed(column) if name == "loss" else column
            parts += [Text(name.replace("_", " "), style="dim"), Text(sparkline(shown, inner))]
    layout = layout_picture(record).splitlines()[:8]
    parts += [Text(""), *(Text(line, no_wrap=True) for line in layout)]
    room = max(3, height - len(rows) - len(parts) - len(layout) - 3)
    parts += [Text("last events", style="dim"), *_last_events(record, room)]
    return Panel(Group(*parts), title=Text(printable(record.name)), width=width)


def _pace(record: RunRecord, num_steps: int | None) -> list[tuple[str, str]]:
    """Speed now, and the time left at it."""
    rate = record.columns.get("tokens_per_second", np.empty(0))[-_RECENT:]
    step, tokens = record.last("step"), record.last("tokens")
    if not np.isfinite(rate).any() or not step or not tokens:
        return []
    now = float(np.nanmedian(rate))
    found = [("speed now", f"{format_count(now)} tokens/s")]
    if num_steps is not None and record.ending is None and now > 0:
        left = (num_steps - step) * tokens / step / now
        found.append(("time left", f"{format_seconds(left)} to step {num_steps:,}"))
    return found


def _last_events(record: RunRecord, most: int) -> list[Text]:
    lines = []
    for event in record.events[-most:]:
        at = event.get("time")
        clock = time.strftime("%H:%M:%S", time.localtime(at)) if isinstance(at, float) else ""
        step = event.get("step")
        told = event.get("reason") or event.get("loss") or event.get("what") or ""
        told = f"{told:.4f}" if isinstance(told, float) else str(told)
        text = f"{clock:8}  {event['event']:18} {'' if step is None else step!s:>8}  {told}"
        lines.append(Text(printable(text), no_wrap=True, overflow="ellipsis"))
    return lines or [Text("none yet")]
