"""Long columns as few points, of which none hides a spike.

Shape letters: N rows, B buckets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triax.launcher.report.records import Column

Rows = NDArray[np.int64]

_SMOOTHING = 0.98
_DIGITS = 6


class Thinned(NamedTuple):
    """A column's B buckets of neighbouring rows; NaN where a bucket has no value."""

    mean: Column
    low: Column
    high: Column


def bucket_starts(num_rows: int, most: int) -> Rows:
    """The first row of each of at most `most` buckets of equal size."""
    return np.unique(np.linspace(0, num_rows, min(num_rows, most), endpoint=False).astype(np.int64))


def thin(column: Column, starts: Rows) -> Thinned:
    """Mean, lowest and highest value of each bucket."""
    if not len(starts):
        return Thinned(column, column, column)
    known = ~np.isnan(column)
    sums = np.add.reduceat(np.where(known, column, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    with np.errstate(invalid="ignore"):
        mean = sums / counts
    return Thinned(mean, np.fmin.reduceat(column, starts), np.fmax.reduceat(column, starts))


def last_of(column: Column, starts: Rows) -> Column:
    """Each bucket's last value: where it stands on an axis."""
    return column[np.append(starts[1:], len(column)) - 1] if len(starts) else column


def smoothed(column: Column) -> Column:
    """Exponential moving average over rows, corrected for its start (Kingma and Ba 2015, section
    3); a row without a value has the former's."""
    average, weight, values = 0.0, 1.0, []
    for value in column.tolist():
        if value == value:
            average = _SMOOTHING * average + (1 - _SMOOTHING) * value
            weight *= _SMOOTHING
        values.append(average / (1 - weight) if weight < 1 else np.nan)
    return np.array(values)


def as_json(values: Column) -> list[float | int | None]:
    """Numbers of six digits, which a picture doesn't outdo; null for NaN."""
    return [
        None if value != value else int(value) if value.is_integer() and abs(value) < 2**53
        else float(f"{value:.{_DIGITS}g}")
        for value in values.tolist()
    ]  # fmt: skip


def thinned_json(column: Column, starts: Rows) -> dict[str, Any]:
    """A column for the page: `mean`, and `low` and `high` where buckets hold several rows."""
    thinned = thin(column, starts)
    if len(starts) == len(column):
        return {"mean": as_json(thinned.mean)}
    return {name: as_json(values) for name, values in thinned._asdict().items()}
