"""Small files of stores as local ones, and a dataset whose tokens stay where they are.

A mirror has the paths of its store, below the cache's `files/`. Of a dataset it has the indexes and
`data.json`; in the place of each `.bin` lies a pointer, `.bin.remote`, which says what to read. It
is compared with the store each time it is asked for.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path

from triax.common.errors import UserError
from triax.common.files import open_own, read_regular, replace_text, write_errors
from triax.common.paths import scheme_of, url_of
from triax.data.remote.cache import Cache
from triax.data.remote.files import list_url, open_remote, stat_url
from triax.data.remote.stores import RemoteFile, split_url

POINTER = ".remote"
"""Ending of the name of what says which file of the store is meant, be it copied or not."""
_COPY_BYTES = 1 << 22
_MOST_BYTES = 1 << 16


def mirrored_dataset(prefix: Path | str, cache: Cache | None = None) -> Path:
    """The local prefix that stands for one in a store; a local one is itself.

    Raises:
        UserError: the store doesn't answer or can't be used, or the disk is full.
    """
    url = url_of(prefix)
    if url is None:
        return Path(prefix)
    parent, _, name = url.rpartition("/")
    pattern = re.compile(re.escape(name) + r"(-\d{5,})?\.(idx|bin|weights)")
    if scheme_of(url) in ("http", "https"):
        found = _probed(url)
    else:
        found = [
            f for f in list_url(parent, below=False) if pattern.fullmatch(_relative(f, parent))
        ]
    record = stat_url(f"{parent}/data.json")
    mirror = _Mirror(cache or Cache(), parent)
    with mirror.locked():
        names = {_relative(file, parent) for file in found}
        mirror.remove_others(pattern, names)
        for file in [*found, *([] if record is None else [record])]:
            mirror.bring(file, whole=not file.url.endswith(".bin"))
    return mirror.folder / name


def mirrored_files(folder: Path | str, names: Sequence[str], cache: Cache | None = None) -> Path:
    """The local folder with those files of a store's folder that are there, and no others of these
    names; a local folder is itself.

    Raises:
        UserError: as `mirrored_dataset`.
    """
    url = url_of(folder)
    if url is None:
        return Path(folder)
    mirror = _Mirror(cache or Cache(), url)
    with mirror.locked():
        for name in names:
            file = stat_url(f"{url}/{name}")
            if file is None:
                mirror.remove(name)
            else:
                mirror.bring(file, whole=True)
    return mirror.folder


def pointer_at(path: Path) -> RemoteFile | None:
    """What stands for a file at its place; None where the file itself is expected there.

    Raises:
        UserError: the pointer is damaged.
    """
    pointer = path.with_name(path.name + POINTER)
    if path.exists() or not pointer.exists():
        return None
    found = _read_pointer(pointer)
    if found is None:
        raise UserError(f"{pointer}: damaged; delete it")
    return found


def _read_pointer(path: Path) -> RemoteFile | None:
    try:
        return RemoteFile(**json.loads(read_regular(path, _MOST_BYTES)))
    except (OSError, ValueError, TypeError):
        return None


def _relative(file: RemoteFile, folder: str) -> str:
    return file.url.removeprefix(f"{folder}/")


def _probed(url: str) -> list[RemoteFile]:
    """The shards of a prefix on a server that lists nothing."""
    shards = []
    for number in count(-1):
        prefix = url if number < 0 else f"{url}-{number:05d}"
        if (index := stat_url(f"{prefix}.idx")) is not None:
            parts = [stat_url(f"{prefix}{suffix}") for suffix in (".bin", ".weights")]
            shards += [index, *(part for part in parts if part is not None)]
        elif number >= 0:
            break
    return shards


class _Mirror:
    """Local files for those of one folder of a store."""

    def __init__(self, cache: Cache, url: str) -> None:
        root, key = split_url(url)
        scheme, _, host = root.partition("://")
        self.folder = cache.folder.joinpath("files", scheme, host, key)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of a machine fetches, the others find it there."""
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = open_own(self.folder / ".lock", os.O_RDWR)
        try:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def bring(self, file: RemoteFile, *, whole: bool) -> None:
        """Make the local file, or what stands for it, be the store's."""
        path = self.folder / file.url.rpartition("/")[2]
        pointer = path.with_name(path.name + POINTER)
        is_there = path.exists() == whole and _read_pointer(pointer) == file
        if is_there and (not whole or path.stat().st_size == file.size):
            return
        with write_errors(path):
            pointer.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            if whole:
                self._copy(file, path)
            replace_text(pointer, json.dumps(asdict(file)))

    @staticmethod
    def _copy(file: RemoteFile, path: Path) -> None:
        temporary = path.with_name(f"{path.name}.partial")
        with open_remote(file) as source, temporary.open("wb") as target:
            while content := source.read(_COPY_BYTES):
                target.write(content)
        temporary.replace(path)

    def remove(self, name: str) -> None:
        """A file that isn't in the store any more."""
        for path in (self.folder / name, self.folder / f"{name}{POINTER}"):
            with write_errors(path):
                path.unlink(missing_ok=True)

    def remove_others(self, pattern: re.Pattern[str], names: set[str]) -> None:
        """Files of such names that the store doesn't have."""
        for path in self.folder.iterdir():
            name = path.name.removesuffix(POINTER)
            if pattern.fullmatch(name) and name not in names:
                self.remove(name)
