"""Equal keys among more than memory holds: parted on disk by their first bits, then sorted.

A key file holds `KEY` entries of one piece. Items are numbered through all pieces in the order of
the documents, so the smallest item of a group is the one that came first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triax.common.files import make_folder, write_errors

Array = NDArray[Any]
KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("item", "<u8")])
_SORTED_BYTES_PER_BYTE = 4
"""What a sort holds at once, of what it sorts."""
_READ = 1 << 20


def later_items(
    files: Sequence[Path], folder: Path, memory_bytes: int
) -> Iterator[tuple[Array, Array]]:
    """The items whose key an earlier item has, and that key's first item; in several parts.

    Args:
        files: of `KEY` entries; an item may have several.
        folder: for temporary files, removed at the end.
        memory_bytes: about what is held at once.

    Raises:
        UserError: the disk is full.
    """
    total = sum(file.stat().st_size for file in files)
    num_parts = max(1, -(-total * _SORTED_BYTES_PER_BYTE // memory_bytes))
    if num_parts == 1:
        yield _later(
            np.concatenate([np.empty(0, KEY), *(np.fromfile(file, KEY) for file in files)])
        )
        return
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    _part(files, folder, num_parts, min(_READ, max(1, memory_bytes // (8 * KEY.itemsize))))
    for number in range(num_parts):
        path = folder / f"{number}"
        if path.exists():
            yield _later(np.fromfile(path, KEY))
            path.unlink()
    shutil.rmtree(folder)


def _part(files: Sequence[Path], folder: Path, num_parts: int, num_read: int) -> None:
    for file in files:
        size = file.stat().st_size // KEY.itemsize
        for begin in range(0, size, num_read):
            keys = np.fromfile(file, KEY, num_read, offset=begin * KEY.itemsize)
            parts = ((keys["high"] >> np.uint64(32)) * np.uint64(num_parts)) >> np.uint64(32)
            order = np.argsort(parts, kind="stable")
            keys, parts = keys[order], parts[order]
            bounds = np.flatnonzero(np.diff(parts, prepend=np.uint64(num_parts)))
            for start, end in zip(bounds, [*bounds[1:], len(keys)], strict=True):
                path = folder / f"{int(parts[start])}"
                with write_errors(path), path.open("ab") as stream:
                    stream.write(keys[start:end].tobytes())


def _later(keys: Array) -> tuple[Array, Array]:
    if not len(keys):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    keys = keys[np.lexsort((keys["item"], keys["low"], keys["high"]))]
    high, low, items = keys["high"], keys["low"], keys["item"]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    firsts = items[np.maximum.accumulate(np.where(is_new, np.arange(len(keys)), 0))]
    is_later = ~is_new & (items != firsts)
    return items[is_later].copy(), firsts[is_later]


class Components:
    """Connected components of numbered things; each is called by its smallest member.

    Holds 8 bytes a thing. The result doesn't depend on the order of the edges.
    """

    def __init__(self, num_things: int) -> None:
        self._labels = np.arange(num_things, dtype=np.int64)

    def connect(self, ones: Array, others: Array) -> None:
        """Add edges: the larger root of two hangs below the smaller, until all have one."""
        ones, others = ones.astype(np.int64), others.astype(np.int64)
        while len(ones):
            ones, others = self._roots(ones), self._roots(others)
            differ = ones != others
            ones, others = ones[differ], others[differ]
            np.minimum.at(self._labels, np.maximum(ones, others), np.minimum(ones, others))

    def labels(self) -> Array:
        """Each thing's component."""
        while True:
            above = self._labels[self._labels]
            if np.array_equal(above, self._labels):
                return self._labels
            self._labels = above

    def _roots(self, things: Array) -> Array:
        while True:
            above = self._labels[things]
            if np.array_equal(above, things):
                return things
            things = above
