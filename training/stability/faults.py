"""Rehearsed failures, from the `[faults]` section.

Faults of a process strike at named points of the loop and of a save. Faults of the data strike
in the engine's forward and backward pass: `FaultyEngine` wraps any engine.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from triax.checkpoint.folders import CHECKPOINTS_FOLDER, folder_name
from triax.common.tokens import IGNORE_INDEX
from triax.models.batch import Batch
from triax.parallel.engine import Counts, Engine, StepSums
from triax.parallel.flat_shards import local_parts
from triax.training.stability_config import Fault, FaultsConfig

IN_ENGINE = ("flip-weight", "nan-gradient", "corrupt-batch")
"""Kinds that strike within the step, not at a point."""
ONCE = ("kill", "exception", "hang", "freeze", "flip-file", "flip-weight")
"""Kinds that strike once in a run: a file remembers them, for the run that is started again."""


class RehearsedError(RuntimeError):
    """The exception of the fault `exception`."""


class FaultInjector:
    """Makes the planned failures of one process happen at their points.

    Args:
        config: the plan; empty by default.
        rank: this process's rank.
        run_dir: where it is remembered what has struck, and where checkpoints are.
    """

    def __init__(self, config: FaultsConfig, rank: int, run_dir: Path) -> None:
        self._plan = {
            name: fault for name, fault in _named(config.plan) if fault.rank in (None, rank)
        }
        self._rank = rank
        self._run_dir = run_dir
        self._memory = run_dir / "faults" / f"rank-{rank}.txt"
        self._batch_number = 0

    def at(self, point: str, step: int) -> None:
        """Called at every named point; strikes if the plan says so."""
        for name, fault in self._plan.items():
            is_here = fault.kind not in IN_ENGINE and fault.where == point and fault.covers(step)
            if is_here and self._may_strike(name, fault):
                self._strike(fault, step)

    def begin_batch(self, number: int) -> None:
        """Say which global batch of the data comes next, counted from 1."""
        self._batch_number = number

    def wrap(self, engine: Engine) -> Engine:
        """The engine, with the faults of the data if any are planned."""
        return FaultyEngine(engine, self) if self._plan else engine

    def due(self, kind: str) -> bool:
        """Whether a fault of the data strikes in the batch that was begun."""
        return any(
            fault.kind == kind and fault.covers(self._batch_number)
            and self._may_strike(name, fault)
            for name, fault in self._plan.items()
        )  # fmt: skip

    @property
    def batch_number(self) -> int:
        """Of the batch that was begun."""
        return self._batch_number

    def _may_strike(self, name: str, fault: Fault) -> bool:
        """Whether it has not struck already; notes durably that it does now."""
        if fault.kind not in ONCE:
            return True
        if self._memory.exists() and name in self._memory.read_text().split():
            return False
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with self._memory.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())
        return True

    def _strike(self, fault: Fault, step: int) -> None:
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.kind == "exception":
            raise RehearsedError(f"a rehearsed exception at {fault.where} of step {step}")
        elif fault.kind == "hang":
            while True:
                time.sleep(1.0)
        elif fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault.kind == "disk-full":
            raise OSError(errno.ENOSPC, "No space left on device (rehearsed)")
        elif fault.kind == "flip-file":
            self._flip_file(step)

    def _flip_file(self, step: int) -> None:
        """Flip a bit in the middle of one of the step's saved files, another for each rank."""
        files = sorted((self._run_dir / CHECKPOINTS_FOLDER / folder_name(step)).glob("*.distcp"))
        path = files[self._rank % len(files)]
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))


class FaultyEngine:
    """An engine whose data or memory is struck; everything else is the engine's own."""

    def __init__(self, engine: Engine, faults: FaultInjector) -> None:
        self._engine = engine
        self._faults = faults
        self.device = engine.device
        self.update = engine.update
        self.evaluate = engine.evaluate
        self.log_probs = engine.log_probs
        self.likeliest = engine.likeliest
        self.sum_over_data = engine.sum_over_data
        self.state = engine.state
        self.frozen_state = engine.frozen_state
        self.locate_non_finite = engine.locate_non_finite

    def count_targets(self, micro_batches: Sequence[Batch]) -> Counts:
        return self._engine.count_targets(self._as_read(micro_batches))

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> StepSums:
        if self._faults.due("flip-weight"):
            flip_weight(self._engine.state())
        if self._faults.due("nan-gradient"):
            weight = weight * float("nan")
        return self._engine.forward_backward(self._as_read(micro_batches), weight)

    def _as_read(self, micro_batches: Sequence[Batch]) -> Sequence[Batch]:
        """The same, or noise, each time they are asked for."""
        if not self._faults.due("corrupt-batch"):
            return micro_batches
        return [corrupted(batch, self._faults.batch_number) for batch in micro_batches]


def _named(plan: Sequence[Fault]) -> Iterator[tuple[str, Fault]]:
    """Names by which faults are remembered: a changed plan is another one, whatever the order."""
    seen: Counter[str] = Counter()
    for fault in plan:
        content = hashlib.sha256(fault.model_dump_json().encode()).hexdigest()[:12]
        yield f"{fault.kind}:{content}:{seen[content]}", fault
        seen[content] += 1


def corrupted(batch: Batch, seed: int) -> Batch:
    """The batch with random tokens in the place of its own, as wrong shards would give."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = int(batch.tokens_BT.max()) + 1
    shape = batch.tokens_BT.shape
    targets_BT = torch.randint(num_tokens, shape, generator=generator)
    return replace(
        batch,
        tokens_BT=torch.randint(num_tokens, shape, generator=generator),
        targets_BT=targets_BT.masked_fill(~batch.is_target_BT, IGNORE_INDEX),
    )


@torch.no_grad()
def flip_weight(state: Mapping[str, Tensor]) -> None:
    """Flip a low bit of one weight that this process holds, as failing memory does."""
    for local in itertools.chain.from_iterable(map(local_parts, state.values())):
        if local.numel() and local.dtype == torch.float32:
            local.view(torch.int32).view(-1)[local.numel() // 2] ^= 1 << 12
            return
