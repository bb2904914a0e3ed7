"""What each process was doing when it was last heard of, as small files. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from triax.common.files import replace_text
from triax.common.json_lines import read_object

STACKS_OF = "=== stacks of rank"
"""How each of the dumps in a rank's `.stacks` file begins."""
STALE_SECONDS = 3.0
"""A file so much older than the newest, and than its own rhythm, is of a process that is stopped
or dead."""


@dataclass(frozen=True)
class Heartbeat:
    """One process at one moment."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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


_HEARTBEAT = TypeAdapter(Heartbeat)


def heartbeat_path(folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return folder / f"rank-{rank}.json"


def write_heartbeat(folder: Path, heartbeat: Heartbeat) -> None:
    """Write a rank's file, whole or not at all.

    Raises:
        OSError: the file system doesn't take it.
    """
    path = heartbeat_path(folder, heartbeat.rank)
    replace_text(path, json.dumps(asdict(heartbeat)) + "\n")


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """All ranks' files, by rank; what can't be read is left out."""
    found = []
    for path in folder.glob("rank-*.json"):
        try:
            found.append(_HEARTBEAT.validate_python(read_object(path)))
        except ValidationError:
            continue
    return sorted(found, key=lambda heartbeat: heartbeat.rank)


def silent(heartbeats: Sequence[Heartbeat], now: float) -> list[Heartbeat]:
    """Those whose process no longer writes: stopped, dead, or its machine is."""
    return [
        heartbeat
        for heartbeat in heartbeats
        if heartbeat.status == "running"
        and now - heartbeat.time > STALE_SECONDS + 3 * heartbeat.period
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
