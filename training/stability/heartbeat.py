"""What each process was doing when it was last heard of: a small file a node. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from triax.common.files import open_own, read_regular

STACKS_OF = "=== stacks of rank"
"""How each of the dumps in a `.stacks` file begins."""
LINE_BYTES = 1024
"""Of each process's place in its node's file."""
_MOST_BYTES = 1 << 20
"""Of a node's file."""
STALE_SECONDS = 3.0
"""A file so much older than the newest, and than its own rhythm, is of a process that is stopped
or dead."""


@dataclass(frozen=True)
class Heartbeat:
    """One process at one moment."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    rank: int
    host: str
    pid: int
    step: int
    activity: str
    """Of the main thread."""
    num_beats: int
    """How often the main thread has gone on to another activity: the same on all processes that
    are equally far."""
    since: float
    """When it went on to this one, in seconds since 1970."""
    time: float
    """When this was written, by a thread of its own that lives as long as the process runs."""
    period: float
    """Seconds from one writing to the next."""
    status: Literal["running", "ended", "failed"] = "running"
    """Whether the process has left the job: in an orderly way, or with an error of its own."""
    files: str = "node-0"
    """How its log and its stacks are called, in `logs/`."""
    called: float = 0.0
    """When it had written its stacks for a hang, in seconds since 1970; 0: for none."""
    copied_after: float = 0.0
    """Seconds until others may see it, where it is written on its node's own drive."""


_HEARTBEAT = TypeAdapter(Heartbeat)


class Board:
    """The heartbeats of one node's processes in one file, where each has a line of its own.

    Args:
        path: of the file; its folder is there.
        slot: this process's line.
        num_slots: how many there are.

    Raises:
        OSError: it can't be opened.
    """

    def __init__(self, path: Path, slot: int = 0, num_slots: int = 1) -> None:
        self._offset = slot * LINE_BYTES
        self._descriptor = open_own(path, os.O_RDWR)
        if os.fstat(self._descriptor).st_size > num_slots * LINE_BYTES:
            os.ftruncate(self._descriptor, num_slots * LINE_BYTES)  # of a job of more a node

    def write(self, heartbeat: Heartbeat) -> None:
        """Write this process's line.

        Raises:
            OSError: the file system doesn't take it.
        """
        line = json.dumps(asdict(heartbeat)).encode()
        assert len(line) < LINE_BYTES, line
        os.pwrite(self._descriptor, line.ljust(LINE_BYTES - 1) + b"\n", self._offset)

    def read(self) -> list[Heartbeat]:
        """The heartbeats of all that share the file."""
        return _parsed(os.pread(self._descriptor, _MOST_BYTES, 0))

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """All ranks' last heartbeats, by rank; what can't be read is left out."""
    newest: dict[int, Heartbeat] = {}
    for path in folder.glob("*.jsonl"):
        try:
            found = _parsed(read_regular(path, _MOST_BYTES))
        except OSError:
            continue
        for heartbeat in found:
            if heartbeat.rank not in newest or newest[heartbeat.rank].time < heartbeat.time:
                newest[heartbeat.rank] = heartbeat
    return [newest[rank] for rank in sorted(newest)]


def _parsed(content: bytes) -> list[Heartbeat]:
    found = []
    for line in content.split(b"\n"):
        try:
            found.append(_HEARTBEAT.validate_json(line.strip(b" \0")))
        except ValidationError:  # one that hasn't written yet, or is writing
            continue
    return found


def silent(heartbeats: Sequence[Heartbeat], now: float) -> list[Heartbeat]:
    """Those whose process no longer writes: stopped, dead, or its machine is."""
    return [
        heartbeat
        for heartbeat in heartbeats
        if heartbeat.status == "running"
        and now - heartbeat.time > STALE_SECONDS + 3 * heartbeat.period + heartbeat.copied_after
    ]


@dataclass(frozen=True)
class Blame:
    """Who holds the others up, as far as their heartbeats tell."""

    culprits: tuple[Heartbeat, ...]
    """Empty where all are equally far: then only the stacks can tell."""
    why: str

    def __str__(self) -> str:
        if not self.culprits:
            return self.why
        ranks = ", ".join(f"rank {c.rank} on {c.host}" for c in self.culprits)
        return f"{ranks}: {self.why}"


def blame(heartbeats: Sequence[Heartbeat], now: float) -> Blame:
    """Name who is silent, else who is behind the others.

    Args:
        heartbeats: of all ranks.
        now: seconds since 1970, at the time of the hang.
    """
    if gone := silent(heartbeats, now):
        age = max(now - heartbeat.time for heartbeat in gone)
        return Blame(tuple(gone), f"not heard of for {age:.0f} s: stopped, dead or cut off")
    running = [heartbeat for heartbeat in heartbeats if heartbeat.status == "running"]
    if not running:
        return Blame((), "every process has ended")
    least = min(heartbeat.num_beats for heartbeat in running)
    behind = [heartbeat for heartbeat in running if heartbeat.num_beats == least]
    if len(behind) < len(running) or len(running) == 1:
        first = behind[0]
        what = f"still {first.activity} (step {first.step}) for {now - first.since:.0f} s"
        if len(running) > 1:
            what += ", while the others wait for it"
        return Blame(tuple(behind), what)
    return Blame((), "all processes are equally far, waiting in the same place or for the network")
