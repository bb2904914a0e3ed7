"""The checkpoints of one run: save in the background, choose the newest good one, load, retain.

Every method that says "collective" is called by all ranks of the group, in the same order. While
a save runs, only its thread uses the group.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from triax.checkpoint.folders import (
    CheckpointInfo,
    checkpoints_at,
    folder_name,
    inspect,
    list_checkpoints,
    problems_of,
    remove_temporaries,
    remove_whatever,
    set_aside,
)
from triax.checkpoint.reading import read_into
from triax.checkpoint.staging import Shard, Stager
from triax.checkpoint.storage import ShardReader
from triax.checkpoint.writing import OnPoint, no_point, write_checkpoint
from triax.common.errors import UserError
from triax.parallel.agreement import agreed, describe, on_first, reported
from triax.parallel.collectives import group_rank, group_size

_GRACE_SECONDS = 2.0
"""After the deadline, for ranks that are not stuck to agree that it has passed."""


@dataclass(frozen=True)
class SaveOutcome:
    """How a save ended; every rank gets the same, but for `seconds`."""

    step: int
    seconds: float
    """From the call of `save` to the durable checkpoint."""
    num_bytes: int
    """The checkpoint's size on disk; 0 when it failed or was there already."""
    error: str | None
    """Why it failed; None when it succeeded."""


@dataclass
class _RunningSave:
    """A save's thread, and what it leaves behind when it ends."""

    step: int
    started: float
    thread: threading.Thread = field(init=False)
    num_bytes: int = 0
    error: str | None = None
    seconds: float = 0.0
    is_reported: bool = False


class CheckpointStore:
    """Saves and loads named tensors plus one JSON record, in `directory/step-00001000/`.

    A save that fails, for whatever reason and on whichever rank, is an outcome with an error on
    every rank; it raises nothing, and the checkpoints there were stay.

    Args:
        directory: on a file system that all ranks share; made when first needed.
        keep: how many checkpoints stay.
        asynchronous: write in the background; otherwise `save` returns when it is done.
        deadline_seconds: a save that takes longer has failed.
        group: a gloo group that nothing else uses, whose own timeout is no shorter than the
            deadline; None for a single process.
        say: takes a line for the user, on the first rank only, perhaps from the save's thread.
        on_point: called at the named points of a save, with the step, for rehearsing crashes.
        staging: a folder for the copies that a save makes first; None keeps them in memory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        asynchronous: bool,
        deadline_seconds: float,
        group: dist.ProcessGroup | None = None,
        say: Callable[[str], None] = print,
        on_point: OnPoint = no_point,
        staging: Path | None = None,
    ) -> None:
        assert keep > 0
        self._directory = directory
        self._keep = keep
        self._asynchronous = asynchronous
        self._deadline_seconds = deadline_seconds
        self._group = group
        self._say = say if group_rank(group) == 0 else lambda _: None
        self._on_point = on_point
        self._stager = Stager(staging)
        self._running: _RunningSave | None = None
        self._outcomes: deque[SaveOutcome] = deque()

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], record: dict[str, Any]) -> None:
        """Copy the tensors, and write them in the background. Collective.

        When it returns, the tensors and the record may be changed. It waits for an earlier save
        first. Ranks may hold different names (pipeline stages); the first rank's record counts.
        A checkpoint of this step with the same record stays as it is, if it is good.

        Raises:
            TypeError: the record is not made of what JSON can hold.
        """
        started = time.monotonic()
        record = json.loads(json.dumps(record))
        self._join()
        if self._running is not None:
            reason = f"the save of step {self._running.step} is still stuck in its writing"
            self._outcomes.append(SaveOutcome(step, 0.0, 0, reason))
            return
        staged: dict[str, list[Shard]] | Exception
        try:
            staged = self._stager.stage(tensors)
            self._on_point("save-staged", step)
        except Exception as error:  # told to the other ranks by the save's first agreement
            staged = error
        self._running = running = _RunningSave(step, started)
        # A daemon: a write that never returns must not keep the process from ending.
        running.thread = threading.Thread(
            target=self._run, args=(running, staged, record), name="checkpoint", daemon=True
        )
        running.thread.start()
        if not self._asynchronous:
            self._join()

    def poll(self) -> SaveOutcome | None:
        """The next save that ended and wasn't told of yet, without waiting.

        Ranks may learn of it at different steps: nothing collective may hang on it.
        """
        self._collect()
        return self._outcomes.popleft() if self._outcomes else None

    def wait(self) -> SaveOutcome | None:
        """Wait until no save runs, no longer than its deadline; then as `poll`."""
        self._join()
        return self.poll()

    def entries(self) -> list[CheckpointInfo]:
        """The checkpoints there are, whole or not, by step."""
        return list_checkpoints(self._directory)

    def clean(self) -> None:
        """Remove what interrupted saves and removals left, as far as possible. Collective."""
        self._join()
        for problem in on_first(lambda: remove_temporaries(self._directory), self._group):
            self._say(f"{problem}; it stays, and the run goes on")

    def newest_good(self, before: int | None = None) -> CheckpointInfo | None:
        """The newest checkpoint whose every byte is as it was written. Collective.

        Bad ones are told through `say`, and the one before is taken.

        Args:
            before: look only at checkpoints of smaller steps.

        Returns:
            None if there are no checkpoints at all.

        Raises:
            UserError: there are checkpoints, and all are bad: a run never silently starts anew.
        """
        self._join()
        infos = [
            info
            for info in on_first(self.entries, self._group)
            if before is None or info.step < before
        ]
        if not infos:
            return None
        found = self._newest_good_of(infos)
        if found is None:
            raise UserError(
                f"{self._directory}: none of its {len(infos)} checkpoints is good: restore one "
                "from a copy, or choose another run.name to start anew"
            )
        return found

    def good_at(self, path: Path) -> CheckpointInfo:
        """The checkpoint that a path means, as `checkpoints_at` takes it, or the newest good one
        of the run there; verified like `newest_good`. Collective.

        Raises:
            UserError: there is none, or none is good.
        """
        found = self._newest_good_of(on_first(lambda: checkpoints_at(path), self._group))
        if found is None:
            raise UserError(f"{path}: no good checkpoint: restore it from a copy")
        return found

    def _newest_good_of(self, infos: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
        for info in reversed(infos):
            problems = self._problems_of(info)
            if not problems:
                return info
            self._say(f"checkpoint {info.path} is bad, trying an earlier one: {problems[0]}")
        return None

    def load(self, info: CheckpointInfo, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Fill the tensors in place from a checkpoint that was found good. Collective.

        The tensors may have any layout, and be some of those saved; see `reading.read_into`.

        Returns:
            The record.

        Raises:
            UserError: a name is missing or a shape differs (another model), or a file is damaged.
        """
        assert info.manifest is not None
        self._join()
        # One reads where everything is, lest thousands read the same file at once.
        shard_map = on_first(ShardReader(info.path).read_map, self._group)
        agreed(lambda: read_into(info.path, tensors, shard_map), self._group)
        return info.manifest.record

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: a rollback has abandoned them. Collective.

        Raises:
            RankError: one could not even be renamed.
        """
        self._join()
        on_first(lambda: self._remove([e for e in self.entries() if e.step > step]), self._group)

    def _join(self) -> None:
        """Wait for the running save, until its deadline; a stuck one stays in `_running`."""
        if self._running is not None:
            end = self._running.started + self._deadline_seconds + _GRACE_SECONDS
            self._running.thread.join(max(0.0, end - time.monotonic()))
        self._collect()

    def _collect(self) -> None:
        """Queue the running save's outcome, if it has ended or has no time left."""
        run = self._running
        if run is None:
            return
        elapsed, is_alive = time.monotonic() - run.started, run.thread.is_alive()
        if not is_alive:
            self._running = None
            outcome = SaveOutcome(run.step, run.seconds, run.num_bytes, run.error)
        elif elapsed > self._deadline_seconds + _GRACE_SECONDS:
            text = f"no end after {elapsed:.0f} s (checkpoint.deadline)"
            outcome = SaveOutcome(run.step, elapsed, 0, text)
        else:
            return
        if not run.is_reported:
            self._outcomes.append(outcome)
        run.is_reported = True

    def _run(
        self, run: _RunningSave, staged: dict[str, list[Shard]] | Exception, record: dict[str, Any]
    ) -> None:
        """The body of a save's thread."""
        try:
            agreed(lambda: _raise_if_failed(staged), self._group)
            assert not isinstance(staged, Exception)
            target = self._directory / folder_name(run.step)
            if not self._is_saved(target, record):
                run.num_bytes = write_checkpoint(
                    target,
                    staged,
                    record,
                    step=run.step,
                    group=self._group,
                    deadline=run.started + self._deadline_seconds,
                    on_point=self._on_point,
                )
            if group_rank(self._group) == 0:
                self._retain(run.step)
        except Exception as error:
            run.error = describe(error)
        run.seconds = time.monotonic() - run.started

    def _is_saved(self, target: Path, record: dict[str, Any]) -> bool:
        def look() -> CheckpointInfo | None:
            info = inspect(target)
            return info if info.manifest is not None and info.manifest.record == record else None

        info = on_first(look, self._group)
        return info is not None and not self._problems_of(info)

    def _problems_of(self, info: CheckpointInfo) -> list[str]:
        """What is wrong with a checkpoint; each rank reads its share of the files."""
        if info.manifest is None:
            return problems_of(info)
        share = sorted(info.manifest.files)[group_rank(self._group) :: group_size(self._group)]
        found = reported(lambda: problems_of(info, files=share) or None, self._group)
        return [problem for _, problems in sorted(found.items()) for problem in problems]

    def _retain(self, step: int) -> None:
        """Keep the newest few up to the one just saved, which is the newest known to be good.

        Later ones are left alone: they are bad, or of a trajectory that someone still wants.
        """
        try:
            older = [info for info in self.entries() if info.step < step]
            self._remove(older[: max(0, len(older) - self._keep + 1)])
        except OSError as error:
            self._say(f"an old checkpoint could not be removed: {error}")

    def _remove(self, infos: list[CheckpointInfo]) -> None:
        for info in infos:
            aside = set_aside(info.path)
            try:
                remove_whatever(aside)
            except OSError as error:
                self._say(f"{aside} could not be removed, and stays: {error.strerror or error}")


def _raise_if_failed(staged: dict[str, list[Shard]] | Exception) -> None:
    if isinstance(staged, Exception):
        raise staged
