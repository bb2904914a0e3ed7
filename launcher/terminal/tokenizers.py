"""Compared tokenizers as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from triax.common.errors import UserError
from triax.common.showing import printable
from triax.data.prepare.compare_tokenizers import Figures

_NAME = 15


def comparison_table(found: Sequence[Figures]) -> Table:
    """A line for each tokenizer and group of texts, in 80 columns."""
    table = Table(width=80)
    for name in ("tokenizer", "text"):
        table.add_column(name, no_wrap=True)
    for name in ("tokens", "bytes/token", "MB/s", "lossless"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, each in enumerate(found):
        is_last = number + 1 == len(found) or found[number + 1].tokenizer != each.tokenizer
        table.add_row(
            Text(_fitted(each.tokenizer)),
            Text(_fitted(each.group)),
            f"{each.vocab_size:,}",
            f"{each.bytes_per_token:.3f}",
            f"{each.megabytes_per_second:.1f}",
            f"{each.num_lossless / each.num_documents:.0%}",
            end_section=is_last,
        )
    return table


def _fitted(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _NAME else f"...{shown[3 - _NAME :]}"


def save_comparison(found: Sequence[Figures], path: Path) -> None:
    """Draw bytes a token and speed, a group of bars for each text.

    Raises:
        UserError: it can't be written there.
    """
    from matplotlib.figure import Figure  # slow to import, and seldom wanted

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, found, {f: f.bytes_per_token for f in found}, "bytes a token (more is shorter)")
    _draw(right, found, {f: f.megabytes_per_second for f in found}, "MB/s, one process")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the picture can't be written: {error}") from error


def _draw(axes: Any, found: Sequence[Figures], values: dict[Figures, float], title: str) -> None:
    tokenizers = list(dict.fromkeys(each.tokenizer for each in found))
    groups = list(dict.fromkeys(each.group for each in found))
    width = 0.8 / len(tokenizers)
    for number, tokenizer in enumerate(tokenizers):
        places = [
            groups.index(each.group) + (number - (len(tokenizers) - 1) / 2) * width
            for each in found
            if each.tokenizer == tokenizer
        ]
        heights = [values[each] for each in found if each.tokenizer == tokenizer]
        bars = axes.bar(places, heights, width, label=_plain(tokenizer))
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    names = [_plain(_fitted(group)) for group in groups]
    axes.set_xticks(range(len(groups)), names, rotation=20 if len(groups) > 3 else 0)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(name: str) -> str:
    """Without what matplotlib takes for mathematics."""
    return printable(name).replace("$", r"\$")
