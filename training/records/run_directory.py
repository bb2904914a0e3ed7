"""The files of a run and who may write them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from triax.common.errors import UserError
from triax.common.files import exclusive, replace_text, write_errors
from triax.common.json_lines import append_lines, read_lines, read_object


class Cut(NamedTuple):
    """How many lines a cut has taken out of metrics.jsonl."""

    num_later: int
    """Of later steps."""
    num_unreadable: int
    """Torn, damaged, or nobody's."""


class Rows(NamedTuple):
    """What a file of lines holds."""

    rows: list[dict[str, Any]]
    num_unreadable: int
    """Lines that are left out."""


class RunDirectory:
    """Paths and small writes of `runs/NAME/`; rank 0 alone writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.exit = path / "exit.json"
        self.plot = path / "loss.png"
        self.load_plot = path / "expert-load.png"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.profile = path / "profile"
        self.heartbeats = path / "heartbeats"
        self.abandoned = path / "abandoned.jsonl"
        self.stop_report = path / "stop-report.md"

    def create(self) -> None:
        """Make the folders.

        Raises:
            UserError: the directory can't be made or written.
        """
        try:
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.unlink(missing_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the run directory {self.path} can't be written: {error.strerror}. "
                "Set run.dir to a folder that you may write to."
            ) from None

    def locked(self) -> AbstractContextManager[None]:
        """Keep other jobs out of this run for as long as this one lives.

        Raises:
            UserError: another process holds the run, or it cannot be written.
        """
        return exclusive(
            self.path,
            f"another job is training in {self.path}: "
            "wait for it, stop it, or choose another run.name",
        )

    def append_event(self, event: str, **fields: Any) -> None:
        """Add one line to events.jsonl, with the time in seconds since 1970."""
        self._append(self.events, {"event": event, "time": time.time(), **fields})

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        self._append(self.metrics, row)

    def cut_metrics(self, step: int) -> Cut:
        """Drop what metrics.jsonl says of steps after `step`, and what can't be read of it.

        The file is replaced as a whole.

        Raises:
            OSError: it can't be read or replaced.
        """
        kept, later, unreadable = self._parted(step)
        self._replace_metrics(kept)
        return Cut(len(later), len(unreadable))

    def abandon_metrics(self, step: int) -> Cut:
        """Move what metrics.jsonl says of steps after `step`, and what can't be read of it, to
        abandoned.jsonl.

        Raises:
            OSError: a file can't be read or written; then nothing is lost.
        """
        kept, later, unreadable = self._parted(step)
        if later or unreadable:
            text = b"\n".join(later + unreadable)
            append_lines(self.abandoned, text.decode(errors="replace"))
        self._replace_metrics(kept)
        return Cut(len(later), len(unreadable))

    def _parted(self, step: int) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """The lines of metrics.jsonl: of steps up to `step`, of later ones, unreadable ones."""
        kept: list[bytes] = []
        later: list[bytes] = []
        unreadable: list[bytes] = []
        for line in read_lines(self.metrics):
            found = _step_of(line.row)
            part = unreadable if found is None else kept if found <= step else later
            part.append(line.text)
        return kept, later, unreadable

    def _replace_metrics(self, lines: list[bytes]) -> None:
        if self.metrics.exists():
            replace_text(self.metrics, "".join(line.decode() + "\n" for line in lines))

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The readable lines of metrics.jsonl or events.jsonl."""
        return self.read(path).rows

    def read(self, path: Path) -> Rows:
        """The lines of metrics.jsonl or events.jsonl; none if it doesn't exist or can't be read.

        One of metrics.jsonl that names no `step`, or one of events.jsonl no `event`, is not ours.
        """
        rows: list[dict[str, Any]] = []
        num_unreadable = 0
        is_ours = _is_event if path == self.events else _is_row
        try:
            for line in read_lines(path):
                if line.row is not None and is_ours(line.row):
                    rows.append(line.row)
                else:
                    num_unreadable += 1
        except OSError:
            num_unreadable += 1
        return Rows(rows, num_unreadable)

    def forget_exit(self) -> None:
        """Remove exit.json: a job that is killed must not seem to have ended as the one before.

        Raises:
            UserError: it can't be removed.
        """
        for path in (self.exit, self.stop_report):
            with write_errors(path):
                path.unlink(missing_ok=True)

    def read_exit(self) -> dict[str, Any] | None:
        """How the run ended, by its `code` and perhaps more; None if no file says so."""
        content = read_object(self.exit)
        return content if content is not None and _is_integer(content.get("code")) else None

    def write_exit(self, code: int, reason: str, **fields: Any) -> None:
        """Say in exit.json how the run ended."""
        content = {"code": int(code), "reason": reason, "time": time.time(), **fields}
        replace_text(self.exit, json.dumps(content, indent=2) + "\n")

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        append_lines(path, json.dumps(_strict(row), allow_nan=False))


def _strict(value: Any) -> Any:
    """The value as strict JSON can hold it: what is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _step_of(row: Mapping[str, Any] | None) -> int | None:
    """The step of a line of metrics.jsonl."""
    step = None if row is None else row.get("step")
    return step if isinstance(step, int) and _is_integer(step) and step >= 0 else None


def _is_row(row: Mapping[str, Any]) -> bool:
    return _step_of(row) is not None


def _is_event(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("event"), str)
