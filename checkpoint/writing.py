"""Write one checkpoint so that at every moment there is either none of that name or a whole one.

Torch's planner decides which rank writes which part, and torch's writer writes; what is between
(who tells whom, and what happens when a rank fails) is here, because `dcp.save` sends exception
objects between ranks and one that cannot be unpickled leaves the others waiting.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from triax.checkpoint.folders import TEMPORARY, remove_whatever, set_aside
from triax.checkpoint.manifest import FileEntry, make_manifest, seal, write_manifest
from triax.checkpoint.staging import Shard
from triax.checkpoint.storage import METADATA_FILE, ShardWriter
from triax.common.files import fsync_folder
from triax.parallel.agreement import agreed, decided, on_first, through_first
from triax.parallel.collectives import group_rank

OnPoint = Callable[[str, int], None]
"""Called with the name of a point in a save, and the step: a place to rehearse a crash."""


def no_point(_name: str, _step: int) -> None:
    """The `OnPoint` that does nothing."""


def write_checkpoint(
    target: Path,
    shards: Mapping[str, Sequence[Shard]],
    record: dict[str, Any],
    *,
    step: int,
    group: dist.ProcessGroup | None = None,
    deadline: float = math.inf,
    on_point: OnPoint = no_point,
) -> int:
    """Write all ranks' shards and the first rank's record to the folder `target`. Collective.

    A checkpoint that is already at `target` is replaced at the last moment.

    Args:
        record: anything that JSON can hold.
        deadline: a `time.monotonic()`; after it the checkpoint is not made valid any more.

    Returns:
        The checkpoint's size in bytes.

    Raises:
        UserError, RankError: any rank failed, on every rank; what was written is removed.
    """
    folder = on_first(lambda: _make_empty(target), group)
    try:
        files, num_bytes = _write_files(folder, shards, step, group, on_point)

        def mark_whole() -> None:
            on_point("save-before-manifest", step)
            if time.monotonic() > deadline:
                raise TimeoutError("the save took longer than its deadline")
            if group_rank(group) == 0:
                write_manifest(folder, make_manifest(step, record, files))
                fsync_folder(folder)

        def put_in_place() -> None:
            on_point("save-before-rename", step)
            if group_rank(group) == 0:
                _replace(target, folder)

        agreed(mark_whole, group)
        agreed(put_in_place, group)
    except Exception:
        if group_rank(group) == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    on_point("save-done", step)
    return num_bytes


def _write_files(
    folder: Path,
    shards: Mapping[str, Sequence[Shard]],
    step: int,
    group: dist.ProcessGroup | None,
    on_point: OnPoint,
) -> tuple[dict[str, FileEntry], int]:
    """Every rank writes its part, durably.

    Returns:
        All files with their checksums on the first rank, none on the others; and their bytes.
    """
    planner, writer = _Planner(shards), ShardWriter(folder)
    merged: list[Metadata] = []

    def local_plan() -> SavePlan:
        writer.set_up_storage_writer(group_rank(group) == 0)
        return writer.prepare_local_plan(planner.create_local_plan())

    def divide(plans: list[SavePlan]) -> list[SavePlan]:
        plans, metadata = planner.create_global_plan(plans)
        merged.append(metadata)
        _check_space(folder, sum(_num_bytes(item) for plan in plans for item in plan.items))
        return writer.prepare_global_plan(plans)

    plan = through_first(local_plan, divide, group)

    def write() -> tuple[list[WriteResult], dict[str, FileEntry]]:
        results = writer.write_data(planner.finish_plan(plan), planner).wait()
        on_point("save-shard-written", step)
        on_point("save-before-fsync", step)
        names = {result.storage_data.relative_path for result in results}
        return results, {name: seal(folder / name) for name in names}

    def finish(parts: list[tuple[list[WriteResult], dict[str, FileEntry]]]) -> int:
        writer.finish(merged[0], [results for results, _ in parts])
        files[METADATA_FILE] = seal(folder / METADATA_FILE)
        for _, sealed in parts:
            files.update(sealed)
        return sum(entry.bytes for entry in files.values())

    files: dict[str, FileEntry] = {}
    num_bytes = decided(write, finish, group)
    return files, num_bytes


class _Planner(DefaultSavePlanner):
    """Torch's planner over shards that have left their device and their mesh."""

    def __init__(self, shards: Mapping[str, Sequence[Shard]]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shards = {
            MetadataIndex(name, shard.offsets): shard
            for name, held in shards.items()
            for shard in held
        }

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(index, shard) for index, shard in self._shards.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self._shards[index].data


def _write_item(index: MetadataIndex, shard: Shard) -> WriteItem:
    return WriteItem(
        index=index,
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(shard.offsets, shard.data.shape),
            properties=TensorProperties(dtype=shard.data.dtype),
            size=shard.size,
        ),
    )


def _num_bytes(item: WriteItem) -> int:
    data = item.tensor_data
    assert data is not None
    return prod(data.chunk.sizes) * data.properties.dtype.itemsize


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            f"no space for the checkpoint: it needs {num_bytes / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free in {folder.parent}"
        )


def _make_empty(target: Path) -> Path:
    """A new folder beside the target; what has its name and can't be removed is left alone."""
    for number in itertools.count():
        folder = target.with_name(f"{target.name}{f'.{number}' if number else ''}{TEMPORARY}")
        with suppress(OSError):
            remove_whatever(folder)
        if not os.path.lexists(folder):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("numbers have no end")


def _replace(target: Path, folder: Path) -> None:
    old = set_aside(target) if os.path.lexists(target) else None
    folder.rename(target)
    fsync_folder(target.parent)
    if old is not None:
        with suppress(OSError):  # the checkpoint is there; the next start tries again
            remove_whatever(old)
