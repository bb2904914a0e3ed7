"""Files in stores as Python reads files: found, listed, opened; all of it with patience."""

from __future__ import annotations

import io
from typing import BinaryIO

from triax.data.remote.patience import PATIENCE_SECONDS, patiently
from triax.data.remote.stores import RemoteFile, split_url, store_of

_READ_BYTES = 1 << 22
"""Of one request of a stream."""


def stat_url(url: str) -> RemoteFile | None:
    """The file at a URL; None where there is none.

    Raises:
        UserError: it may not be read, or the store doesn't answer.
    """
    key = split_url(url)[1]

    def stat() -> RemoteFile | None:
        try:
            return store_of(url).stat(key)
        except FileNotFoundError:
            return None

    return patiently(url, stat)


def list_url(url: str, *, below: bool = True) -> list[RemoteFile]:
    """The files in a folder and all `below` it, those of a folder before those of its subfolders,
    each in the order of their names, as a local folder is read.

    Raises:
        UserError: it may not be read, or the store doesn't answer.
    """
    key = split_url(url)[1]
    found = patiently(url, lambda: store_of(url).list(key, below=below))
    return sorted(found, key=lambda file: _reading_order(file.key))


def _reading_order(key: str) -> list[tuple[bool, str]]:
    *folders, name = key.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def read_range(
    file: RemoteFile, start: int, stop: int, patience: float = PATIENCE_SECONDS
) -> bytes:
    """Some bytes of a file.

    Raises:
        UserError: it isn't there any more, was replaced, or the store doesn't answer.
    """
    if start == stop:
        return b""

    def read() -> bytes:
        content = store_of(file.url).read(file, start, stop)
        if len(content) != stop - start:
            raise ConnectionError(f"{len(content):,} bytes came instead of {stop - start:,}")
        return content

    return patiently(file.url, read, patience)


def open_remote(file: RemoteFile) -> BinaryIO:
    """A file to read from its beginning or from anywhere. A read that fails is tried again.

    Its reads raise UserError as `read_range`.
    """
    return io.BufferedReader(_Raw(file), _READ_BYTES)


class _Raw(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._position + len(buffer), self._file.size)
        content = read_range(self._file, self._position, stop) if stop > self._position else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
