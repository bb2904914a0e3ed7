"""The index of a shard, `PREFIX.idx`, mapped once it is what it promises.

Its format stands in `triax.data.read.shards`.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triax.common.errors import UserError
from triax.data.remote.mirror import pointer_at

Array = np.ndarray[Any, Any]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOAT_CODES = (6, 7)
_MEND = "copy the shard again or prepare it anew"
_CHUNK = 1 << 20
"""Entries looked at in one piece, so that checking a shard takes a few MiB of memory."""


def with_suffix(prefix: Path, suffix: str) -> Path:
    """Append to the name; unlike `Path.with_suffix`, dots in the prefix stay."""
    return Path(f"{prefix}{suffix}")


class ShardIndex(NamedTuple):
    """What a checked index says."""

    dtype: np.dtype[Any]
    """Integer type of a token in the file."""
    num_tokens: int
    pointers: Array
    """[num_sequences] int64, bytes."""
    boundaries: Array
    """[num_documents + 1] int64, sequence numbers."""


def open_index(prefix: Path) -> ShardIndex:
    """Map a shard's index after checking that both files are what it promises.

    Reads the whole index once (20 bytes a document) and no tokens.

    Raises:
        UserError: a file is missing, unreadable, damaged or empty.
    """
    idx, bin_ = with_suffix(prefix, ".idx"), with_suffix(prefix, ".bin")
    dtype, num_sequences, num_boundaries = _read_header(idx)
    lengths, pointers, boundaries = _map_index(idx, num_sequences, num_boundaries)
    num_tokens = _check_sequences(idx, lengths, pointers, dtype.itemsize)
    _check_boundaries(idx, boundaries, num_sequences)
    _check_bin_size(idx, bin_, num_tokens * dtype.itemsize)
    if num_tokens == 0:
        raise UserError(f"{prefix}: the shard holds no tokens; prepare it from more text")
    return ShardIndex(dtype, num_tokens, pointers, boundaries)


def chunks(count: int) -> Iterator[slice]:
    """So many entries, in pieces."""
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))


def file_size(path: Path) -> int:
    """Size in bytes of a regular file (opening a pipe would wait for ever)."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; {_MEND}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file; {_MEND}")
    return status.st_size


def map_file(path: Path, dtype: np.dtype[Any], offset: int, count: int) -> Array:
    """[count] of a file, from a byte on; nothing is held in memory."""
    if count == 0:
        return np.zeros(0, dtype)
    try:
        mapped = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be mapped: {error}; {_MEND}") from None
    return mapped.view(np.ndarray)


def _read_header(idx: Path) -> tuple[np.dtype[Any], int, int]:
    """The dtype, the number of sequences and the number of document boundaries."""
    size = file_size(idx)
    if size < HEADER.size:
        raise UserError(f"{idx}: {size} bytes, shorter than an index's header; {_MEND}")
    header = bytes(map_file(idx, np.dtype("u1"), offset=0, count=HEADER.size))
    magic, version, code, num_sequences, num_boundaries = HEADER.unpack(header)
    if magic != MAGIC:
        raise UserError(f"{idx}: no index of token shards, it does not begin with MMIDIDX; {_MEND}")
    if version != VERSION:
        raise UserError(f"{idx}: version {version}, only version {VERSION} is known; {_MEND}")
    if code not in DTYPES:
        kind = "holds floating-point values" if code in _FLOAT_CODES else "is unknown"
        raise UserError(f"{idx}: dtype code {code} {kind}, expected integer tokens; {_MEND}")
    return np.dtype(DTYPES[code]), num_sequences, num_boundaries


def _map_index(idx: Path, num_sequences: int, num_boundaries: int) -> tuple[Array, Array, Array]:
    """Lengths, pointers and document boundaries, once the file has the size for them."""
    promised = HEADER.size + 12 * num_sequences + 8 * num_boundaries
    size = file_size(idx)
    if size == promised + num_sequences != promised:
        raise UserError(f"{idx}: a multimodal dataset (it has sequence modes); text is expected")
    if size != promised:
        raise UserError(
            f"{idx}: {size:,} bytes, but its header promises {num_sequences:,} sequences and "
            f"{num_boundaries:,} document boundaries, which take {promised:,} bytes; {_MEND}"
        )
    offset = HEADER.size
    lengths = map_file(idx, np.dtype("<i4"), offset, num_sequences)
    pointers = map_file(idx, np.dtype("<i8"), offset + 4 * num_sequences, num_sequences)
    boundaries = map_file(idx, np.dtype("<i8"), offset + 12 * num_sequences, num_boundaries)
    return lengths, pointers, boundaries


def _check_sequences(idx: Path, lengths: Array, pointers: Array, itemsize: int) -> int:
    """Check that sequences follow each other without gaps; returns the number of tokens."""
    num_tokens = 0
    for piece in chunks(len(lengths)):
        ends = num_tokens + np.cumsum(lengths[piece], dtype=np.int64)
        if int(lengths[piece].min()) < 0:
            raise UserError(f"{idx}: a sequence has a negative length; {_MEND}")
        if not np.array_equal(pointers[piece], (ends - lengths[piece]) * itemsize):
            raise UserError(
                f"{idx}: the sequences' offsets do not follow from their lengths "
                f"(somewhere in sequences {piece.start:,} to {piece.stop:,}); {_MEND}"
            )
        num_tokens = int(ends[-1])
    return num_tokens


def _check_boundaries(idx: Path, boundaries: Array, num_sequences: int) -> None:
    if len(boundaries) == 0 or boundaries[0] != 0 or boundaries[-1] != num_sequences:
        raise UserError(
            f"{idx}: the document boundaries do not run from 0 to the {num_sequences:,} "
            f"sequences; {_MEND}"
        )
    previous = 0
    for piece in chunks(len(boundaries)):
        if boundaries[piece][0] < previous or (np.diff(boundaries[piece]) < 0).any():
            raise UserError(f"{idx}: the document boundaries are not in ascending order; {_MEND}")
        previous = int(boundaries[piece][-1])


def _check_bin_size(idx: Path, bin_: Path, promised: int) -> None:
    pointer = pointer_at(bin_)
    size = file_size(bin_) if pointer is None else pointer.size
    if size != promised:
        word = "cut short" if size < promised else "too long"
        raise UserError(
            f"{bin_}: {size:,} bytes, but {idx.name} promises {promised:,}: "
            f"the file is {word}; {_MEND}"
        )
