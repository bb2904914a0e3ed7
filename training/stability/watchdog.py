"""Ends a job that hangs, with every process's stack on disk and the culprit named."""

from __future__ import annotations

import contextlib
import faulthandler
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
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.heartbeat import (
    STACKS_OF,
    Heartbeat,
    blame,
    heartbeat_path,
    read_heartbeats,
    silent,
    write_heartbeat,
)
from triax.training.stability_config import StabilityConfig

log = logging.getLogger("triax.watchdog")

_REMEMBERED = 32
"""Durations of each activity that the limit is learnt from."""
_LONGEST_TIMER = 30 * 86400.0
_GRACE_SECONDS = 5.0
"""For the other processes to write their stacks before the first one ends."""


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

    A context manager. On a hang each process writes its stacks to `logs/`, one of those that
    still run says in `exit.json` who holds the others up, and all end with exit code 1.

    Args:
        directory: the run's; `heartbeats/` in it is this class's own.
        config: the `[stability]` section.
        rank, world_size: this process among the others.
        at_least: see `Limits`.
        end: ends the process at once, whatever its threads do.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: StabilityConfig,
        *,
        rank: int,
        world_size: int,
        at_least: Mapping[str, float] = MappingProxyType({}),
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._directory = directory
        self._rank = rank
        self._world_size = world_size
        self._end = end
        self._limits = Limits(config, at_least)
        self._period = heartbeat_seconds(config)
        self.started = time.time()
        """This process's part of the job, in seconds since 1970."""
        self._closing = threading.Event()
        self._main = (0, "starting", time.time(), 0)
        self._status: Literal["running", "ended", "failed"] = "running"

    def beat(self, activity: str, step: int) -> None:
        """The main thread goes on to another activity; costs a microsecond or two."""
        _, former, since, num_beats = self._main
        now = time.time()
        self._limits.learn(former, now - since)
        self._main = (step, activity, now, num_beats + 1)

    def __enter__(self) -> Watchdog:
        self._directory.heartbeats.mkdir(parents=True, exist_ok=True)
        self._done_path.unlink(missing_ok=True)
        if self._rank == 0:
            self._forget_other_sessions()
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

    def _watch(self) -> None:
        with self._stacks_path.open("a", encoding="utf-8") as stacks:
            while not self._closing.wait(self._period):
                self._write()
                _, activity, since, _ = self._main
                limit = self._limits.of(activity)
                # A second line, in C: this thread is stuck too where the interpreter is.
                faulthandler.dump_traceback_later(
                    min(2 * limit + 60, _LONGEST_TIMER), exit=True, file=stacks
                )
                seconds = time.time() - since
                is_late = seconds > limit and seconds > self._others_may_take()
                if is_late or self._is_called():
                    faulthandler.cancel_dump_traceback_later()
                    self._call(stacks.fileno(), is_late, limit)
                    return  # where a program around it lives on, a hang is told once

    def _others_may_take(self) -> float:
        """Seconds that what any living process does now may always take: the others wait for it."""
        beats = read_heartbeats(self._directory.heartbeats)
        gone = silent(beats, time.time())
        living = [beat for beat in beats if beat.status == "running" and beat not in gone]
        allowed = (self._limits.always(beat.activity) for beat in living)
        return max((seconds for seconds in allowed if seconds < math.inf), default=0.0)

    def _call(self, stacks: int, is_first_hand: bool, limit: float) -> None:
        """Write all that is known, wait for the others to do so too, and end the process."""
        step, activity, since, _ = self._main
        now = time.time()
        header = f"{STACKS_OF} {self._rank}, step {step}, {activity} for {now - since:.0f} s\n"
        os.write(stacks, header.encode())
        faulthandler.dump_traceback(file=stacks, all_threads=True)
        with contextlib.suppress(Exception):
            self._dump_flight_recorder()
        if is_first_hand:
            with contextlib.suppress(OSError):
                self._hang_file.write_text(json.dumps({"rank": self._rank, "time": now}))
        self._done_path.touch()
        log.error("hang: %s", header.strip())
        self._wait_for_others()
        verdict = blame(read_heartbeats(self._directory.heartbeats), time.time())
        reason = f"hang at step {step}: {verdict}"
        culprits = {heartbeat.rank for heartbeat in verdict.culprits}
        speakers = [r for r in range(self._world_size) if r not in culprits or len(culprits) == 0]
        if self._rank == (speakers or [0])[0]:
            self._tell(reason, step, sorted(culprits), limit)
        else:
            time.sleep(1.0)
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
        end = time.monotonic() + _GRACE_SECONDS + 2 * self._period
        while time.monotonic() < end:
            if len(list(self._directory.logs.glob("rank-*.stacks-done"))) >= self._world_size:
                break
            self._write()
            time.sleep(0.1)
        self._write()

    def _is_called(self) -> bool:
        """Whether another process of this session has found a hang."""
        try:
            return self._hang_file.stat().st_mtime >= self.started
        except OSError:
            return False

    def _dump_flight_recorder(self) -> None:
        """NCCL's record of its last collectives, as JSON."""
        if torch.cuda.is_available():
            trace = torch._C._distributed_c10d._dump_nccl_trace_json()  # type: ignore[attr-defined]
            path = self._directory.logs / f"rank-{self._rank}.flight-recorder.json"
            path.write_bytes(trace if isinstance(trace, bytes) else str(trace).encode())

    def _forget_other_sessions(self) -> None:
        """Remove what a job of more processes, or one that hung, has left."""
        for heartbeat in read_heartbeats(self._directory.heartbeats):
            if heartbeat.rank >= self._world_size:
                heartbeat_path(self._directory.heartbeats, heartbeat.rank).unlink(missing_ok=True)
        self._hang_file.unlink(missing_ok=True)

    def _write(self) -> None:
        step, activity, since, num_beats = self._main
        heartbeat = Heartbeat(
            self._rank, socket.gethostname(), os.getpid(), step, activity, num_beats, since,
            time.time(), self._period, self._status,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # a full disk is no hang
            write_heartbeat(self._directory.heartbeats, heartbeat)

    @property
    def _hang_file(self) -> Path:
        return self._directory.heartbeats / "hang.json"

    @property
    def _done_path(self) -> Path:
        return self._directory.logs / f"rank-{self._rank}.stacks-done"

    @property
    def _stacks_path(self) -> Path:
        return self._directory.logs / f"rank-{self._rank}.stacks"
