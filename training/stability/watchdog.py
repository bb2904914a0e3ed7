"""Ends a job that hangs, with every process's stack on disk and the culprit named."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import logging
import math
import os
import socket
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from triax.common.errors import ExitCode
from triax.common.files import open_own, write_errors
from triax.training.records.local_files import LocalFiles
from triax.training.stability.heartbeat import (
    STACKS_OF,
    Board,
    Heartbeat,
    blame,
    read_heartbeats,
    silent,
)
from triax.training.stability_config import StabilityConfig

log = logging.getLogger("triax.watchdog")

_REMEMBERED = 32
"""Durations of each activity that the limit is learnt from."""
_LONGEST_TIMER = 30 * 86400.0
_GRACE_SECONDS = 5.0
"""For the other processes to write their stacks before the first one ends."""
_LOOK_SECONDS = 0.2
_GATHER_SECONDS = 60.0
"""From one copy of a node's heartbeats in the run directory to the next."""


def enable_flight_recorder() -> None:
    """Have NCCL remember its last collectives; before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


def heartbeat_seconds(config: StabilityConfig) -> float:
    """From one heartbeat to the next."""
    return min(5.0, max(0.1, config.hang_after.amount / 10))


class Limits:
    """How long each activity may take, learnt from how long it took.

    An activity that was never finished in this session may take `hang_after_first`; then its
    limit is `hang_factor` x the longest of its recent durations, and at least `hang_after`.

    Args:
        config: the `[stability]` section.
        at_least: seconds that some activities may always take, for they end by themselves.
    """

    def __init__(
        self, config: StabilityConfig, at_least: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        self._at_least = at_least
        self._least = config.hang_after.amount
        self._first = max(config.hang_after_first.amount, self._least)
        self._factor = config.hang_factor
        self._seconds: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=_REMEMBERED)
        )

    def learn(self, activity: str, seconds: float) -> None:
        """Note how long an activity took."""
        self._seconds[activity].append(seconds)

    def of(self, activity: str) -> float:
        """The limit in seconds."""
        known = self._seconds.get(activity)
        learnt = max(self._least, self._factor * max(known)) if known else self._first
        return max(learnt, self.always(activity))

    def always(self, activity: str) -> float:
        """Seconds that it may take whatever was learnt."""
        return self._at_least.get(activity, 0.0)


class Watchdog:
    """A thread that writes this process's heartbeat and looks whether the main thread goes on.

    A context manager. On a hang each process writes its stacks, the first that has found it says
    in `exit.json` who holds the others up, and all end with exit code 1. A process that hears of a
    hang tells its node; so of each node only one at a time looks into the run directory.

    Args:
        files: this process's; its `heartbeats/` and `.stacks` are this class's own.
        config: the `[stability]` section.
        world_size: how many processes there are.
        at_least: see `Limits`.
        end: ends the process at once, whatever its threads do.
    """

    def __init__(
        self,
        files: LocalFiles,
        config: StabilityConfig,
        *,
        world_size: int,
        at_least: Mapping[str, float] = MappingProxyType({}),
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._files = files
        self._directory = files.directory
        self._rank = files.rank
        self._world_size = world_size
        self._end = end
        self._limits = Limits(config, at_least)
        self._period = heartbeat_seconds(config)
        self.started = time.time()
        """This process's part of the job, in seconds since 1970."""
        self._closing = threading.Event()
        self._main = (0, "starting", time.time(), 0)
        self._status: Literal["running", "ended", "failed"] = "running"
        self._called = 0.0

    def beat(self, activity: str, step: int) -> None:
        """The main thread goes on to another activity; costs a microsecond or two."""
        _, former, since, num_beats = self._main
        now = time.time()
        self._limits.learn(former, now - since)
        self._main = (step, activity, now, num_beats + 1)

    def __enter__(self) -> Watchdog:
        self._files.create()
        if self._rank == 0:
            self._forget_other_sessions()
        with write_errors(self._files.heartbeats):
            self._board = Board(self._files.heartbeats, self._files.slot, self._files.num_slots)
            self._stacks = open_own(self._files.stacks, os.O_WRONLY | os.O_APPEND)
        self._write()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._thread.join(10)
        faulthandler.cancel_dump_traceback_later()
        self._status = "ended" if exception[0] is None else "failed"
        self._write()
        if self._files.speaks or exception[0] is not None:
            with contextlib.suppress(OSError):
                self._files.gather_heartbeats()
        if not self._thread.is_alive():
            self._board.close()
            os.close(self._stacks)

    def _watch(self) -> None:
        gathered = -math.inf
        while not self._closing.wait(self._period):
            self._write()
            if self._is_its_turn(_GATHER_SECONDS) and time.monotonic() - gathered > _GATHER_SECONDS:
                gathered = time.monotonic()
                with contextlib.suppress(OSError):
                    self._files.gather_heartbeats()
            _, activity, since, _ = self._main
            limit = self._limits.of(activity)
            # A second line, in C: this thread is stuck too where the interpreter is.
            faulthandler.dump_traceback_later(
                min(2 * limit + 60, _LONGEST_TIMER), exit=True, file=self._stacks
            )
            seconds = time.time() - since
            is_late = seconds > limit and seconds > self._others_may_take()
            if is_late or self._is_called():
                faulthandler.cancel_dump_traceback_later()
                self._call(is_late, limit)
                return  # where a program around it lives on, a hang is told once

    def _others_may_take(self) -> float:
        """Seconds that what a living process does now may always take, if this one may be waiting
        for it: a process that is further waits for this one."""
        beats = read_heartbeats(self._directory.heartbeats)
        gone = silent(beats, time.time())
        living = [
            beat
            for beat in beats
            if beat.status == "running" and beat not in gone and beat.num_beats <= self._main[3]
        ]
        allowed = (self._limits.always(beat.activity) for beat in living)
        return max((seconds for seconds in allowed if seconds < math.inf), default=0.0)

    def _call(self, is_first_hand: bool, limit: float) -> None:
        """Write all that is known, wait for the others to do so too, and end the process."""
        step, activity, since, _ = self._main
        now = time.time()
        header = f"{STACKS_OF} {self._rank}, step {step}, {activity} for {now - since:.0f} s\n"
        with contextlib.suppress(OSError):
            fcntl.flock(self._stacks, fcntl.LOCK_EX)  # the node's others write there too
        os.write(self._stacks, header.encode())
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        with contextlib.suppress(OSError):
            fcntl.flock(self._stacks, fcntl.LOCK_UN)
        with contextlib.suppress(Exception):
            self._dump_flight_recorder()
        log.error("hang: %s", header.strip())
        speaks = is_first_hand and not self._neighbours_called() and self._is_first()
        self._called = now
        self._write()
        self._files.gather()
        if speaks:
            self._wait_for_others()
            verdict = blame(read_heartbeats(self._directory.heartbeats), time.time())
            culprits = sorted(heartbeat.rank for heartbeat in verdict.culprits)
            self._tell(f"hang at step {step}: {verdict}", step, culprits, limit)
        else:
            self._wait_for_words()
        self._end(ExitCode.FAILED)

    def _tell(self, reason: str, step: int, culprits: list[int], limit: float) -> None:
        with contextlib.suppress(OSError):
            self._directory.append_event(
                "hang", step=step, reason=reason, ranks=culprits, limit_seconds=limit
            )
            self._directory.write_exit(ExitCode.FAILED, reason, step=step)
        print(
            f"{reason}; `triax diagnose {self._directory.path}` says more",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def _wait_for_others(self) -> None:
        """Until all have written their stacks, or those that do so should have."""
        end = time.monotonic() + self._grace
        while time.monotonic() < end:
            self._write()
            with contextlib.suppress(OSError):
                self._files.gather_heartbeats()
            found = read_heartbeats(self._directory.heartbeats)
            if sum(heartbeat.called >= self.started for heartbeat in found) >= self._world_size:
                return
            time.sleep(_LOOK_SECONDS)

    def _wait_for_words(self) -> None:
        """Until the one that speaks has told why the job ends, or should have."""
        end = time.monotonic() + self._grace + 1
        while time.monotonic() < end:
            self._write()
            if self._is_its_turn(_LOOK_SECONDS) and self._directory.exit.exists():
                return
            time.sleep(_LOOK_SECONDS)

    @property
    def _grace(self) -> float:
        return _GRACE_SECONDS + 2 * self._period

    def _is_its_turn(self, period: float) -> bool:
        """Whether it is now this one of the node's processes that looks into the run directory."""
        return int(time.time() / period) % self._files.num_slots == self._files.slot

    def _is_called(self) -> bool:
        """Whether another process of this session has found a hang."""
        if self._neighbours_called():
            return True
        try:
            return (
                self._is_its_turn(self._period) and self._hang_file.stat().st_mtime >= self.started
            )
        except OSError:
            return False

    def _neighbours_called(self) -> bool:
        """Whether one of the node's processes knows of a hang of this session."""
        with contextlib.suppress(OSError):
            return any(heartbeat.called >= self.started for heartbeat in self._board.read())
        return False

    def _is_first(self) -> bool:
        """Whether no other process of the job has said before that there is a hang."""
        try:
            with self._hang_file.open("x") as file:
                json.dump({"rank": self._rank, "time": time.time()}, file)
        except FileExistsError:
            return False
        except OSError:
            return True  # nobody can say so: each tells by itself
        return True

    def _dump_flight_recorder(self) -> None:
        """NCCL's record of its last collectives, as JSON."""
        if torch.cuda.is_available():
            trace = torch._C._distributed_c10d._dump_nccl_trace_json()  # type: ignore[attr-defined]
            path = self._directory.logs / f"rank-{self._rank}.flight-recorder.json"
            path.write_bytes(trace if isinstance(trace, bytes) else str(trace).encode())

    def _forget_other_sessions(self) -> None:
        """Remove what a job of more nodes, or one that hung, has left."""
        kind = self._files.name.partition("-")[0]
        ours = {f"{kind}-{number}.jsonl" for number in range(self._files.num_names)}
        folder = self._directory.heartbeats
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name not in ours:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _write(self) -> None:
        step, activity, since, num_beats = self._main
        heartbeat = Heartbeat(
            self._rank, socket.gethostname(), os.getpid(), step, activity, num_beats, since,
            time.time(), self._period, self._status, self._files.name, self._called,
            0.0 if self._files.are_shared else _GATHER_SECONDS,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # a full disk is no hang
            self._board.write(heartbeat)

    @property
    def _hang_file(self) -> Path:
        return self._directory.heartbeats / "hang.json"
