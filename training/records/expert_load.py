"""What a run's metrics tell of its experts' load: a line, and a picture by layer and time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triax.training.records.plot import is_number, write_figure

_PREFIX = "expert_load/"
"""Before the layer's number, in a row of metrics.jsonl."""
_MOST_COLUMNS = 400
"""Of the picture; steps between them are averaged."""


class Loads(NamedTuple):
    """The load of each layer's busiest expert, over its layer's mean, as the run went on."""

    tokens: list[float]
    """That the run had seen, one number a column."""
    layers: list[int]
    values: list[list[float]]
    """A row a layer; NaN where it isn't known."""


def read_loads(rows: Sequence[Mapping[str, Any]]) -> Loads:
    """The loads that rows of metrics.jsonl tell, in at most 400 columns; none without experts."""
    told = [row for row in rows if is_number(row.get("tokens")) and _layers_of(row)]
    layers = sorted({layer for row in told for layer in _layers_of(row)})
    step = max(1, math.ceil(len(told) / _MOST_COLUMNS))
    columns = [told[first : first + step] for first in range(0, len(told), step)]
    values = [[_mean(column, f"{_PREFIX}{n}") for column in columns] for n in layers]
    return Loads([_mean(column, "tokens") for column in columns], layers, values)


def describe_load(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """How evenly the last step's tokens went to experts; None if no row tells it."""
    row = next((row for row in reversed(rows) if _layers_of(row)), None)
    if row is None:
        return None
    layers = _layers_of(row)
    busiest = max(layers, key=layers.__getitem__)
    parts = [f"busiest {layers[busiest]:.2f} x the mean (layer {busiest})"]
    for name, text in (
        ("dead_experts", "{:.0f} without tokens"),
        ("router_entropy", "entropy {:.2f} nats"),
        ("balance_loss", "balance loss {:.3f}"),
        ("dropped_tokens", "{:.0f} dropped"),
    ):
        if is_number(row.get(name)):
            parts.append(text.format(row[name]))
    return ", ".join(parts)


def plot_loads(path: Path, loads: Loads, title: str) -> None:
    """Draw a picture as PNG, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    from matplotlib.figure import Figure  # slow to import, and only the first rank draws

    height = min(9.0, 2.2 + 0.2 * len(loads.layers))
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    edges = _edges(loads.tokens)
    rows = [number - 0.5 for number in range(len(loads.layers) + 1)]
    known = [load for row in loads.values for load in row if load == load]
    colours = axes.pcolormesh(
        edges, rows, loads.values, cmap="viridis", vmin=1.0, vmax=max(1.01, *known)
    )
    step = max(1, math.ceil(len(loads.layers) / 16))
    axes.set_yticks(range(0, len(loads.layers), step), [str(n) for n in loads.layers[::step]])
    axes.set(xlabel="tokens", ylabel="layer")
    # A name is no formula, whatever dollars are in it.
    axes.set_title(title, parse_math=False)
    figure.colorbar(colours, label="busiest expert's tokens / mean")
    write_figure(path, figure)


def _layers_of(row: Mapping[str, Any]) -> dict[int, float]:
    """The load of each layer that a row tells."""
    return {
        int(name.removeprefix(_PREFIX)): value
        for name, value in row.items()
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isdecimal() and is_number(value)
    }


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if is_number(row.get(name))]
    return sum(values) / len(values) if values else math.nan


def _edges(middles: Sequence[float]) -> list[float]:
    """Where columns end, halfway between their neighbours."""
    between = [(left + right) / 2 for left, right in itertools.pairwise(middles)]
    first = middles[0] - (between[0] - middles[0] if between else 0.5)
    last = middles[-1] + (middles[-1] - between[-1] if between else 0.5)
    return [first, *between, last]
