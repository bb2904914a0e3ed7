"""A bounded cache on a local disk of what is read of files in stores, in blocks.

Processes share it without talking: a block is a file that appears whole, named by its file's
version, and whoever finds it too full removes the blocks that weren't read for the longest time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import xxhash

from triax.common.files import replace_bytes
from triax.data.remote.files import read_range
from triax.data.remote.patience import PATIENCE_SECONDS
from triax.data.remote.stores import RemoteFile

_log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 18
"""A few samples. A larger one would be read in vain: samples come in no order."""
DEFAULT_BYTES = 20 << 30
_CHECKSUM_BYTES = 8
_TOUCH_SECONDS = 60.0
"""A block's last reading is known to this."""
_SHARE_BETWEEN_SWEEPS, _SHARE_KEPT = 1 / 64, 7 / 8
"""A process looks how full the cache is when it has written that much of it; what is left then. So
eight processes on a machine stay below its size."""


def cache_home() -> Path:
    """The folder for what can be made anew: `$XDG_CACHE_HOME/triax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "triax"


class Cache:
    """A folder with `blocks/`, which is bounded, and `files/`, whole small files beside it.

    Args:
        size: most bytes of all blocks.
        patience: seconds for a store that doesn't answer.
    """

    def __init__(
        self,
        folder: Path | None = None,
        size: int = DEFAULT_BYTES,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.folder = cache_home() / "remote" if folder is None else folder
        self._blocks = self.folder / "blocks"
        self._size = size
        self._patience = patience
        self._num_written = size  # so the first block written looks what is there
        self._lock = threading.Lock()

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Some bytes of a file. Threads may call it at once.

        Raises:
            UserError: the file isn't there any more, was replaced, or its store doesn't answer.
        """
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1
        folder = self._folder_of(file)
        blocks = {number: self._load(folder, number) for number in range(first, last)}
        missing = [number for number, content in blocks.items() if content is None]
        if missing:
            blocks |= self._fetch(file, folder, missing[0], missing[-1] + 1)
        whole = b"".join(content for _, content in sorted(blocks.items()) if content is not None)
        return whole[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def _fetch(self, file: RemoteFile, folder: Path, first: int, last: int) -> dict[int, bytes]:
        begin, end = first * BLOCK_BYTES, min(last * BLOCK_BYTES, file.size)
        content = read_range(file, begin, end, self._patience)
        found = {
            number: content[(number - first) * BLOCK_BYTES : (number - first + 1) * BLOCK_BYTES]
            for number in range(first, last)
        }
        for number, block in found.items():
            self._keep(folder, number, block)
        return found

    def _folder_of(self, file: RemoteFile) -> Path:
        name = hashlib.sha256(f"{file.url}\n{file.size}\n{file.version}".encode()).hexdigest()[:32]
        return self._blocks / name

    @staticmethod
    def _load(folder: Path, number: int) -> bytes | None:
        """None where it isn't kept, or isn't what was kept."""
        path = folder / str(number)
        try:
            content = path.read_bytes()
            if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
                os.utime(path)
        except OSError:
            return None
        block, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        return block if xxhash.xxh3_64_digest(block) == checksum else None

    def _keep(self, folder: Path, number: int, block: bytes) -> None:
        """A disk that is full or can't be written costs speed, not the run."""
        if len(block) > self._size:
            return
        temporary = folder / f".{number}-{os.getpid()}-{threading.get_ident()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_bytes(temporary, block + xxhash.xxh3_64_digest(block))
            temporary.replace(folder / str(number))
        except OSError as error:
            _log.debug("%s: a block isn't kept: %s", folder, error)
        with self._lock:
            self._num_written += len(block)
            is_due = self._num_written >= self._size * _SHARE_BETWEEN_SWEEPS
            if is_due:
                self._num_written = 0
        if is_due:
            self._sweep()

    def _sweep(self) -> None:
        """Remove what was read longest ago until there is room again."""
        found = []
        for path in self._blocks.glob("*/*"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= self._size * _SHARE_KEPT:
                break
            with suppress(OSError):
                path.unlink()
            left -= size
