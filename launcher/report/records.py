"""What a run has recorded, read in any state and without torch.

Shape letters: N rows of metrics.jsonl.
"""

from __future__ import annotations

import math
import tomllib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triax.checkpoint.folders import list_checkpoints
from triax.common.errors import UserError
from triax.common.json_lines import read_lines
from triax.training.records.run_directory import RunDirectory

Column = NDArray[np.float64]

_MOST_FIGURES = 400
"""Columns that are read; a row's further keys are left out."""


@dataclass(frozen=True)
class RunRecord:
    """One run's files, as they were when they were read."""

    path: Path
    columns: Mapping[str, Column]
    """Of each figure of metrics.jsonl a column of N values, NaN where a row has none; by step."""
    events: list[dict[str, Any]]
    """Lines of events.jsonl, oldest first."""
    config: Mapping[str, Any]
    """The tables of config.toml; empty where it can't be read."""
    ending: Mapping[str, Any] | None
    """What exit.json says; None while the run goes on, or after it was killed."""
    num_unreadable: int
    """Lines that are left out."""

    @property
    def name(self) -> str:
        """The run's folder's."""
        return self.path.name

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.columns["step"])

    @cached_property
    def hours(self) -> Column:
        """Hours of training up to each row: of its steps alone, without validations and saves."""
        tokens, rate = self.columns.get("tokens"), self.columns.get("tokens_per_second")
        if tokens is None or rate is None or not len(tokens):
            return np.full(self.num_rows, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = np.diff(tokens, prepend=0.0) / rate
        return np.cumsum(np.where(np.isfinite(seconds), seconds.clip(min=0), 0.0)) / 3600

    def last(self, name: str) -> float | None:
        """A figure's newest value; None if there is none."""
        column = self.columns.get(name, np.empty(0))
        known = column[~np.isnan(column)]
        return float(known[-1]) if len(known) else None

    def events_of(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of some kinds."""
        return [event for event in self.events if event["event"] in kinds]

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """What evaluations have found, one for each step, without those that the run has gone
        back behind; tasks' figures are named `task/figure`."""
        found: dict[int, dict[str, Any]] = {}
        for event in self.events:
            step = event.get("step")
            if event["event"].startswith("eval") and isinstance(step, int):
                found[step] = found.get(step, {}) | {"step": step} | dict(_numbers(event))
            back_to = event.get({"start": "step", "rollback": "to_step"}.get(event["event"], ""))
            if isinstance(back_to, int):
                found = {at: numbers for at, numbers in found.items() if at <= back_to}
        return [found[step] for step in sorted(found)]

    @cached_property
    def checkpoint_record(self) -> Mapping[str, Any]:
        """What the newest checkpoint that can be read says of the run; empty without one."""
        try:
            infos = list_checkpoints(self.path / "checkpoints")
        except OSError:
            return {}
        records = (info.manifest.record for info in reversed(infos) if info.manifest is not None)
        return next(records, {})


def read_run(path: Path) -> RunRecord:
    """Everything that a run's folder holds for people.

    Raises:
        UserError: the folder holds no run.
    """
    directory = RunDirectory(path)
    if not any(file.is_file() for file in (directory.config, directory.metrics, directory.events)):
        raise UserError(
            f"{path} holds no run: no config.toml, metrics.jsonl or events.jsonl. "
            "Give the run's own folder, for instance runs/NAME"
        )
    events = directory.read(directory.events)
    columns, num_unreadable = _read_columns(directory.metrics)
    return RunRecord(
        path.resolve(),
        columns,
        events.rows,
        _read_tables(directory.config),
        directory.read_exit(),
        num_unreadable + events.num_unreadable,
    )


def _read_columns(path: Path) -> tuple[dict[str, Column], int]:
    """The columns of metrics.jsonl by step, of a step that comes twice the later row; and how many
    lines can't be read."""
    steps: list[int] = []
    values: dict[str, tuple[array[int], array[float]]] = {}
    num_unreadable = 0
    try:
        for line in read_lines(path):
            step = None if line.row is None else line.row.get("step")
            if line.row is None or type(step) is not int or not 0 <= step < 2**53:
                num_unreadable += 1
                continue
            for name, value in line.row.items():
                if type(value) not in (int, float) or abs(value) > 1e300:
                    continue
                if name not in values and len(values) < _MOST_FIGURES:
                    values[name] = (array("q"), array("d"))
                if name in values:
                    at, numbers = values[name]
                    at.append(len(steps))
                    numbers.append(value)
            steps.append(step)
    except OSError:
        num_unreadable += 1
    # The first of the reversed is the last of equal ones.
    _, order = np.unique(np.array(steps[::-1], dtype=np.int64), return_index=True)
    order = len(steps) - 1 - order
    columns = {"step": np.array(steps, dtype=np.float64)[order]}
    for name, (at, numbers) in values.items():
        column = np.full(len(steps), np.nan)
        column[np.frombuffer(at, dtype=np.int64)] = np.frombuffer(numbers)
        columns[name] = column[order]
    return columns, num_unreadable


def _read_tables(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _numbers(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The finite numbers in an event and in the tables in it, by names with slashes."""
    found: list[tuple[str, float]] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif type(value) in (int, float) and name not in ("step", "time") and math.isfinite(value):
            found.append((f"{prefix}{name}", float(value)))
    return found
