"""Whether shards still have the bytes that `triax data prepare` wrote, by its checksums."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Self

import xxhash

from triax.common.errors import UserError
from triax.common.files import is_file
from triax.data.read.shard_index import file_size, with_suffix
from triax.data.read.shards import find_shards
from triax.data.read.token_weights import SUFFIX
from triax.data.record import load_prepared
from triax.data.remote.files import open_remote
from triax.data.remote.mirror import pointer_at

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 22
_PAUSE_PER_SECOND = 4.0
"""Beside training: rest after each second of reading."""
_JOIN_SECONDS = 10.0
"""A thread stuck in a read (a dead network disk) is left behind: it is a daemon."""


@dataclass(frozen=True)
class KnownFile:
    """A file of a shard and what it must be."""

    path: Path
    checksum: str


def known_files(prefix: str) -> tuple[list[KnownFile], list[Path]]:
    """The files of a dataset whose checksums are known, and those without.

    Raises:
        UserError: there is no such dataset, or its `data.json` is damaged.
    """
    shards = find_shards(prefix)
    prepared = load_prepared(shards[0].parent)
    checksums = {} if prepared is None else prepared.checksums
    parts = [with_suffix(shard, part) for shard in shards for part in (".bin", ".idx", SUFFIX)]
    paths = [path for path in parts if path.suffix != SUFFIX or is_file(path)]
    known = [KnownFile(path, checksums[path.name]) for path in paths if path.name in checksums]
    return known, [path for path in paths if path.name not in checksums]


@dataclass(frozen=True)
class Verifiable:
    """What of some datasets is verified beside a run."""

    files: list[KnownFile]
    without: list[str]
    """Datasets with files whose checksums aren't known."""


def files_of(prefixes: Sequence[str], *, with_remote: bool = True) -> Verifiable:
    """What of these datasets can be verified.

    Args:
        with_remote: files that stay in a store too, which are read whole for it.

    Raises:
        UserError: as `known_files`.
    """
    found = {prefix: known_files(prefix) for prefix in prefixes}
    files = [
        file
        for known, _ in found.values()
        for file in known
        if with_remote or pointer_at(file.path) is None
    ]
    return Verifiable(files, [prefix for prefix, (_, unknown) in found.items() if unknown])


def verify(files: Sequence[KnownFile], rest: Callable[[float], bool] = lambda _: False) -> None:
    """Read files whole and compare them with their checksums.

    Args:
        rest: called with the seconds that each piece took to read; ends all if it returns True.

    Raises:
        UserError: a file differs, or can't be read; it is named.
    """
    for file in files:
        found = _checksum(file.path, rest)
        if found is None:
            return
        if found != file.checksum:
            raise UserError(
                f"{file.path}: damaged: its bytes are not those that were prepared (xxh3 {found}, "
                f"data.json has {file.checksum}); copy the shard again or prepare it anew"
            )
        _log.info("%s is as it was prepared", file.path)


@dataclass(frozen=True)
class Verdict:
    """What the verification of a dataset found."""

    num_known: int
    """Files whose checksums are known."""
    num_unknown: int
    problems: list[str]
    """One for each damaged file."""


def verify_dataset(prefix: str) -> Verdict:
    """Read a dataset whole; all damage to it, not the first alone.

    Raises:
        UserError: as `known_files`.
    """
    known, unknown = known_files(prefix)
    problems = [problem for file in known if (problem := _problem(file)) is not None]
    return Verdict(len(known), len(unknown), problems)


def _problem(file: KnownFile) -> str | None:
    try:
        verify([file])
    except UserError as error:
        return str(error)
    return None


def _checksum(path: Path, rest: Callable[[float], bool]) -> str | None:
    """None if a rest ended it."""
    pointer = pointer_at(path)
    if pointer is None:
        file_size(path)  # refuses a pipe, which would wait for ever
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") if pointer is None else open_remote(pointer) as file:
            began = time.monotonic()
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
                if rest(time.monotonic() - began):
                    return None
                began = time.monotonic()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; copy the shard again") from None
    return digest.hexdigest()


class Verification:
    """Verifies files in a thread, at a fifth of what a disk and a core could do.

    Args:
        files: of this process; processes share them out.
    """

    def __init__(self, files: Sequence[KnownFile]) -> None:
        self._files = files
        self._ending = Event()
        self._error: UserError | None = None
        self._thread = Thread(target=self._run, name="triax-verify", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(_JOIN_SECONDS)

    @property
    def damage(self) -> str | None:
        """What was found so far, in words; None if nothing was."""
        return None if self._error is None else str(self._error)

    def check(self) -> None:
        """Say what was found so far; costs nothing.

        Raises:
            UserError: as `verify`.
        """
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all files are read, or the first was found to be damaged."""
        self._thread.join()

    def _run(self) -> None:
        try:
            verify(self._files, lambda seconds: self._ending.wait(seconds * _PAUSE_PER_SECOND))
        except UserError as error:
            self._error = error
