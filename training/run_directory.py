"""The files of a run and who may write them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.common.files import exclusive, replace_text


class RunDirectory:
    """Paths and small writes of `runs/NAME/`; rank 0 alone writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.exit = path / "exit.json"
        self.plot = path / "loss.png"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
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
            probe.touch()
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

    def cut_metrics(self, step: int) -> int:
        """Drop what metrics.jsonl says of steps after `step`, and any torn last line.

        Returns how many lines were dropped. The file is replaced as a whole.
        """
        return len(self._cut(step))

    def abandon_metrics(self, step: int) -> None:
        """Move what metrics.jsonl says of steps after `step` to abandoned.jsonl."""
        dropped = self._cut(step)
        with self.abandoned.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in dropped))

    def _cut(self, step: int) -> list[str]:
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept: list[str] = []
        dropped: list[str] = []
        for line in lines:
            found = _step_of(line)
            (kept if found is not None and found <= step else dropped).append(line)
        replace_text(self.metrics, "".join(line + "\n" for line in kept))
        return dropped

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The readable lines of metrics.jsonl or events.jsonl; none if it doesn't exist."""
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def forget_exit(self) -> None:
        """Remove exit.json: a job that is killed must not seem to have ended as the one before."""
        for path in (self.exit, self.stop_report):
            path.unlink(missing_ok=True)

    def write_exit(self, code: int, reason: str, **fields: Any) -> None:
        """Say in exit.json how the run ended."""
        content = {"code": int(code), "reason": reason, "time": time.time(), **fields}
        replace_text(self.exit, json.dumps(content, indent=2) + "\n")

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_strict(row), allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    """The value as strict JSON can hold it: what is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _step_of(line: str) -> int | None:
    try:
        row = json.loads(line)
        return int(row["step"])
    except (ValueError, KeyError, TypeError):
        return None
