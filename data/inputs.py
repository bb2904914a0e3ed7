"""What an INPUT means: a file, a folder, a glob, the Python standard library, or a dataset name.

`python-stdlib` is the running Python's own source: real text that is on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from triax.common.errors import UserError
from triax.common.files import is_file, is_folder

STDLIB = "python-stdlib"
SAVED_DATASET = (
    "what `datasets.save_to_disk` writes isn't read; write parquet from it: python -c "
    '\'import datasets; datasets.load_from_disk("FOLDER").to_parquet("FILE.parquet")\' '
    "(each split of a DatasetDict by itself)"
)
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_DATASET = re.compile(r"(?P<name>[\w.-]{1,96}(/[\w.-]{1,96})?)(:(?P<config>[\w.-]+))?", re.ASCII)
_FILE_SUFFIX = re.compile(r"\.(txt|md|py|html?|jsonl?|ndjson|parquet|csv|gz|bz2|xz|zst)$", re.I)


@dataclass(frozen=True)
class TextFile:
    """A file to read."""

    path: Path
    must_be_text: bool
    """Whether it is an error if it is no UTF-8 text; files found in a folder are then left out."""


@dataclass(frozen=True)
class DatasetName:
    """A dataset of the `datasets` library, for instance of the Hugging Face hub."""

    name: str
    config: str | None


Source = list[TextFile] | DatasetName


def resolve(text: str) -> Source:
    """Find what one INPUT names; the order of files is the same on every call.

    A folder is read with all its subfolders in the order of their paths, without hidden
    entries and without following links to folders. `NAME` or `NAME:CONFIG` is looked for in
    `datasets` when there is no file of that name. Write `./python-stdlib` for a folder of
    that name.

    Raises:
        UserError: no file matches, or the text cannot be a dataset's name.
    """
    if text == STDLIB:
        return _stdlib_files()
    path = Path(os.path.expanduser(text))  # noqa: PTH111, Path's raises for an unknown user
    if is_file(path):
        return [TextFile(path, must_be_text=True)]
    if is_folder(path):
        return _filled(text, [TextFile(file, must_be_text=False) for file in _walk(path)])
    if re.search(r"[*?[]", text):
        return _filled(text, _glob(path))
    match = _DATASET.fullmatch(text)
    if match is None or _FILE_SUFFIX.search(text) or text.startswith("."):
        raise UserError(f"{text}: no such file or folder; check the path")
    return DatasetName(match["name"], match["config"])


def inputs_fingerprint(inputs: Sequence[str]) -> str:
    """A short hash of the inputs' names and of their files' paths, sizes and times of change.

    Contents are not read: a hub's dataset counts by its name alone.

    Raises:
        UserError: as `resolve`.
    """
    digest = hashlib.sha256()
    for text in inputs:
        source = resolve(text)
        digest.update(json.dumps(["input", text]).encode())
        if isinstance(source, DatasetName):
            continue
        for file in source:
            status = file.path.stat()
            entry = [os.fspath(file.path.absolute()), status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(entry).encode())
    return digest.hexdigest()[:16]


def _filled(text: str, files: list[TextFile]) -> list[TextFile]:
    if not files:
        raise UserError(f"{text}: no files found there")
    return files


def _glob(pattern: Path) -> list[TextFile]:
    # pathlib's ** follows no links, so that a loop of links ends; glob.glob's does.
    found = Path(pattern.anchor or ".").glob(os.fspath(pattern.relative_to(pattern.anchor)))
    files: dict[Path, TextFile] = {}
    for path in sorted(found):
        if any(part.startswith(".") and part not in pattern.parts for part in path.parts):
            continue
        if is_folder(path):
            files.update({file: TextFile(file, must_be_text=False) for file in _walk(path)})
        elif is_file(path):
            files[path] = TextFile(path, must_be_text=True)
    return list(files.values())


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files below a folder in a fixed order, hidden ones left out."""
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=False):
        if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= set(names):
            raise UserError(f"{parent}: {SAVED_DATASET}")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and is_file(path):
                yield path


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}; make it readable")


def _stdlib_files() -> list[TextFile]:
    """The source files, shuffled by a hash of their names: neighbours are about other things."""
    root = Path(sysconfig.get_paths()["stdlib"])
    relative = [path.relative_to(root) for path in _walk(root) if path.suffix == ".py"]
    wanted = [path.as_posix() for path in relative if not _NOT_STDLIB & set(path.parts)]
    if not wanted:
        raise UserError(
            f"{STDLIB}: this Python has no source files of its standard library in {root}; "
            "name files of your own instead"
        )
    shuffled = sorted(wanted, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [TextFile(root / name, must_be_text=False) for name in shuffled]
