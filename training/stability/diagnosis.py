"""What went wrong in a run, from the files that it left. Imports no torch."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triax.common.errors import ExitCode, UserError
from triax.common.files import open_regular
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.heartbeat import (
    STACKS_OF,
    Blame,
    Heartbeat,
    blame,
    read_heartbeats,
    silent,
)

_STILL_RUNNING_SECONDS = 60.0
_FOLLOW_UPS = re.compile(
    r"closed by peer|reset by peer|PeerFailed|timed out|Broken pipe|NCCL", re.I
)
"""Errors of a process whose peer has failed before."""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')
_TRIAX = Path(__file__).parents[2]
_FOLDERS = {path.parent.name for path in _TRIAX.glob("*/__init__.py")}
_OTHERS = {"site-packages", "dist-packages"}
_ERROR = re.compile(r"^(?P<kind>[\w.]*(?:Error|Exception|Interrupt|Exit))(?:: (?P<text>.*))?$")
_MAX_EVENTS = 8
_MOST_BYTES = 1 << 24
"""Of a log, from its end."""
_TOLD = (
    "hang", "silent_corruption", "data_differs", "stop", "rollback", "new_level", "straggler",
    "checkpoint_failed", "skipped_update",
)  # fmt: skip


@dataclass(frozen=True)
class Process:
    """What is known of one rank."""

    heartbeat: Heartbeat
    fate: str
    """running, ended or failed, as it said; silent, if it was heard of no more while others were.
    One that still ran when the job was over has hung, if its stacks were written, or died."""
    place: str
    """Where its main thread was, if its stacks were written."""
    error: str
    """Its last error, in a line."""


@dataclass(frozen=True)
class Diagnosis:
    """A run's state in words."""

    headline: str
    processes: list[Process]
    cause: str
    advice: list[str]
    events: list[dict[str, Any]]
    """The last few that matter."""
    num_unreadable: int
    """Lines of events.jsonl that were left out."""


def diagnose(run_dir: Path, now: float | None = None) -> Diagnosis:
    """Read a run's heartbeats, stacks, events, exit and logs.

    Args:
        run_dir: of a run that runs, hangs or has ended.
        now: seconds since 1970; the present by default.

    Raises:
        UserError: there is no run.
    """
    directory = RunDirectory(run_dir)
    if not directory.logs.is_dir():
        raise UserError(f"{run_dir}: no run here: expected a folder such as runs/NAME with logs/")
    now = time.time() if now is None else now
    heartbeats = read_heartbeats(directory.heartbeats)
    ending = directory.read_exit()
    # When the job has ended, nobody writes any more: who was silent is judged at that time.
    last = max((heartbeat.time for heartbeat in heartbeats), default=now)
    num_silent = len(silent(heartbeats, now))
    num_running = sum(heartbeat.status == "running" for heartbeat in heartbeats)
    is_over = ending is not None or num_silent == num_running
    judged_at = min(now, last) if is_over else now
    verdict = blame(heartbeats, judged_at)
    gone = {heartbeat.rank for heartbeat in silent(heartbeats, judged_at)}
    processes = [_process(directory, heartbeat, is_over, gone) for heartbeat in heartbeats]
    events, num_unreadable = directory.read(directory.events)
    cause, advice = _explain(directory, ending, processes, events, verdict, is_over)
    return Diagnosis(
        _headline(ending, is_over), processes, cause, advice,
        [event for event in events if event["event"] in _TOLD][-_MAX_EVENTS:],
        num_unreadable,
    )  # fmt: skip


def _headline(ending: dict[str, Any] | None, is_over: bool) -> str:
    if ending is not None:
        return f"ended with exit code {ending.get('code')}: {ending.get('reason')}"
    return "ended without a word: all processes were killed" if is_over else "running"


def _process(
    directory: RunDirectory, heartbeat: Heartbeat, is_over: bool, gone: set[int]
) -> Process:
    fate: str = heartbeat.status
    place = _main_thread_place(directory.logs / f"{heartbeat.files}.stacks", heartbeat.rank)
    if fate == "running" and heartbeat.rank in gone:
        fate = "silent"
    elif fate == "running" and is_over:
        fate = "hung" if place else "died"
    log = directory.logs / f"{heartbeat.files}.log"
    error = _last_error(log, heartbeat.rank) if fate == "failed" else ""
    return Process(heartbeat, fate, place, error)


def _explain(
    directory: RunDirectory,
    ending: dict[str, Any] | None,
    processes: list[Process],
    events: list[dict[str, Any]],
    verdict: Blame,
    is_over: bool,
) -> tuple[str, list[str]]:
    """The likely cause, and what to do."""
    session = _since_start(events)
    by_name = {event["event"]: event for event in session}
    if ending is not None and ending.get("code") == ExitCode.DONE:
        return "none: the run is finished", []
    if "hang" in by_name:
        return _explain_hang(by_name["hang"], processes)
    if ending is not None and ending.get("code") == ExitCode.STOPPED_BY_GUARD:
        return str(ending.get("reason")), [f"read {directory.stop_report}"]
    if ending is not None and ending.get("code") in (ExitCode.BAD_INPUT, ExitCode.PREEMPTED):
        return str(ending.get("reason")), ["mend that, and run the same command again"]
    own = [p for p in processes if p.error and not _FOLLOW_UPS.search(p.error)]
    if own:
        what = f"{_name(own[0])} failed in step {own[0].heartbeat.step}: {own[0].error}"
        return what, [f"read the traceback in {_log(directory, own[0])}"]
    dead = [p for p in processes if p.fate in ("died", "silent")]
    if is_over and dead:
        names = ", ".join(_name(p) for p in dead)
        return (
            f"{names} died in step {dead[0].heartbeat.step} without a word: killed by a signal, "
            "by the system when memory ran out, or with its machine",
            [
                "on that host, look for 'out of memory' in the kernel's log (dmesg)",
                "run the same command again: it goes on from the last checkpoint",
            ],
        )
    if "checkpoint_failed" in by_name and ending is not None:
        return str(by_name["checkpoint_failed"].get("error")), ["make room, then run it again"]
    if ending is None and verdict.culprits and _is_late(verdict):
        return str(verdict), ["wait for the watchdog, or stop the job"]
    return ("see the logs" if is_over else "nothing is wrong, as far as the files tell"), []


def _explain_hang(event: dict[str, Any], processes: list[Process]) -> tuple[str, list[str]]:
    culprits = [p for p in processes if p.heartbeat.rank in _listed(event.get("ranks"))]
    cause = str(event.get("reason"))
    advice = []
    for process in culprits:
        if process.place:
            cause += f"; {_name(process)} was in {process.place}"
            advice.append(f"read logs/{process.heartbeat.files}.stacks for what it did there")
        else:
            advice.append(
                f"look at {process.heartbeat.host}: process {process.heartbeat.pid} wrote no "
                "stacks, so it was stopped, its machine was down, or its disk was"
            )
    if not culprits:
        advice.append("compare logs/*.stacks: who is not in a collective holds the others up")
        advice.append("with NCCL, logs/rank-*.flight-recorder.json holds the last collectives")
    advice.append("run the same command again; if that machine hangs again, take it out")
    return cause, advice


def _is_late(verdict: Blame) -> bool:
    return any(time.time() - culprit.since > _STILL_RUNNING_SECONDS for culprit in verdict.culprits)


def _name(process: Process) -> str:
    return f"rank {process.heartbeat.rank} on {process.heartbeat.host}"


def _log(directory: RunDirectory, process: Process) -> Path:
    return directory.logs / f"{process.heartbeat.files}.log"


def _since_start(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the last session."""
    starts = [n for n, event in enumerate(events) if event["event"] == "start"]
    return events[starts[-1] :] if starts else events


def _main_thread_place(stacks: Path, rank: int) -> str:
    """The innermost frame of the main thread in a rank's last dump, and the innermost of triax's.

    What C has written of a stuck interpreter has no header; such a dump is the first text.
    """
    first, *rest = _text(stacks).split(STACKS_OF)
    dumps = [dump for dump in rest if re.match(rf" {rank}\b", dump)]
    dump = dumps[-1] if dumps else first
    # faulthandler lists the main thread last.
    frames = list(_FRAME.finditer(dump.rpartition("Thread 0x")[2]))
    if not frames:
        return ""
    inner = frames[0]
    place = f"{inner['function']} ({Path(inner['file']).name}:{inner['line']})"
    for frame in frames:
        if own := _part_of_triax(frame["file"]):
            called = f"{frame['function']} ({own}:{frame['line']})"
            return called if frame is inner else f"{place} called by {called}"
    return place


def _part_of_triax(file: str) -> str | None:
    """The path within triax of a file of it, on a machine where it may lie elsewhere."""
    parts = Path(file).parts
    for start in range(1, len(parts) - 1):
        own = Path(*parts[start:])
        # Others have such names too: torch, for one, a utils/data/sampler.py.
        may_be_own = parts[start - 1] == "triax" or _OTHERS.isdisjoint(parts[:start])
        if may_be_own and parts[start] in _FOLDERS and (_TRIAX / own).is_file():
            return str(own)
    return None


def _last_error(log: Path, rank: int) -> str:
    """The last exception's line in a log that is a rank's."""
    found, prefix = "", f"rank {rank} | "
    for line in _text(log).splitlines():
        if line.startswith(prefix) and (match := _ERROR.match(line.removeprefix(prefix))):
            found = match[0]
    return found[:300]


def _text(path: Path) -> str:
    """The end of what a file says; nothing if it isn't there or can't be read."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_BYTES))
            return file.read(_MOST_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
