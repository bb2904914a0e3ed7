"""Checkpoints as folders: their names, what is in a run, what is wrong with one, removal.

A run's checkpoints are `checkpoints/step-00001000/`. A name that ends in `.tmp` is being written
or removed, and is no checkpoint. Imports no torch.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from triax.checkpoint.manifest import MANIFEST_FILE, Manifest, check_file, read_manifest
from triax.common.errors import UserError
from triax.common.files import fsync_folder, is_file, is_folder

CHECKPOINTS_FOLDER = "checkpoints"
TEMPORARY = ".tmp"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointInfo:
    """A folder with a checkpoint's name, and its manifest or what is wrong with that."""

    step: int
    path: Path
    manifest: Manifest | None
    problem: str | None


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def inspect(path: Path) -> CheckpointInfo:
    """Read a checkpoint's manifest, without looking at its files."""
    try:
        manifest = read_manifest(path)
    except UserError as error:
        match = _NAME.fullmatch(path.name)
        return CheckpointInfo(int(match[1]) if match else 0, path, None, str(error))
    return CheckpointInfo(manifest.step, path, manifest, None)


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """All checkpoints in a folder of checkpoints, whole or not, by step; none if it isn't there.

    A file, or a link to nothing, is none, whatever its name.
    """
    if not is_folder(directory):
        return []
    paths = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and is_folder(path)]
    return sorted((inspect(path) for path in paths), key=lambda info: info.step)


def has_begun(run_dir: Path) -> bool:
    """Whether a run's folder holds a checkpoint, good or not: then it goes on from there."""
    directory = run_dir / CHECKPOINTS_FOLDER
    return is_folder(directory) and any(_NAME.fullmatch(path.name) for path in directory.iterdir())


def problems_of(
    info: CheckpointInfo, *, files: Iterable[str] | None = None, contents: bool = True
) -> list[str]:
    """What is wrong with a checkpoint, one line each.

    Args:
        files: look only at these of its files.
        contents: read every byte; otherwise only the sizes count.
    """
    if info.manifest is None:
        assert info.problem is not None
        return [info.problem]
    entries = info.manifest.files
    names = entries if files is None else files
    checked = (check_file(info.path / name, entries[name], contents=contents) for name in names)
    return [problem for problem in checked if problem is not None]


def checkpoints_at(path: Path) -> list[CheckpointInfo]:
    """The checkpoint at a path, or all of a run's by step, whole or not.

    Args:
        path: a checkpoint's folder, a run's folder, or a run's `checkpoints/`.

    Raises:
        UserError: there is none.
    """
    if is_file(path / MANIFEST_FILE) or (is_folder(path) and _NAME.fullmatch(path.name)):
        return [inspect(path)]
    infos = list_checkpoints(path / CHECKPOINTS_FOLDER) or list_checkpoints(path)
    if not infos:
        raise UserError(
            f"{path}: no checkpoint here: expected a checkpoint's folder (with {MANIFEST_FILE}) "
            f"or a run's folder (with {CHECKPOINTS_FOLDER}/step-...)"
        )
    return infos


def resolve_checkpoint(path: Path, *, contents: bool = True) -> Path:
    """The good checkpoint that a path means: itself, or the newest good one of a run.

    Args:
        path: as `checkpoints_at` takes it.
        contents: verify every byte; otherwise only the sizes count.

    Raises:
        UserError: there is none, or none is good.
    """
    reasons = []
    for info in reversed(checkpoints_at(path)):
        problems = problems_of(info, contents=contents)
        if not problems:
            return info.path
        reasons.append(f"{info.path.name}: {problems[0]}")
    raise UserError(f"{path}: no good checkpoint: " + "; ".join(reasons))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, that becomes `target` when all went well, and is removed otherwise.

    Raises:
        UserError: there is something at `target` already, or it cannot be written.
    """
    refuse_existing(target)
    folder = target.with_name(target.name + TEMPORARY)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        folder.rename(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Let through a path where nothing is, or an empty folder.

    Raises:
        UserError: something is there.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise UserError(f"{target}: exists already; give a new folder, or remove it first")


def set_aside(path: Path) -> Path:
    """Rename a checkpoint, or what has its name, so that it is none, durably; returns its new path.

    Done before it is removed, so that at no moment half of one looks like a whole one.

    Raises:
        OSError: it could not be renamed.
    """
    names = (f"{path.name}.removed{n or ''}{TEMPORARY}" for n in itertools.count())
    aside = next(free for name in names if not os.path.lexists(free := path.with_name(name)))
    path.rename(aside)
    fsync_folder(path.parent)
    return aside


def remove_temporaries(directory: Path) -> list[str]:
    """Remove what interrupted saves and removals left.

    Returns:
        What stays and why: it harms nothing, but takes room, or is not ours to remove.
    """
    problems = []
    for path in sorted(directory.glob("step-*")) if directory.is_dir() else []:
        if path.name.endswith(TEMPORARY):
            try:
                remove_whatever(path)
            except OSError as error:
                problems.append(f"{path} can't be removed: {error.strerror or error}")
        elif _NAME.fullmatch(path.name) and not is_folder(path):
            problems.append(f"{path} is no folder, so it is no checkpoint")
    return problems


def remove_whatever(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link but not what that points to.

    Raises:
        OSError: it could not be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
