"""Windows of whole documents: a shard's documents, packed into samples by best fit.

A document that a window can hold is never cut. A longer one is cut into windows as a stream is, at
stride `seq_len`, and what is left of it is packed like a document, so that each of its tokens but
the first is a target once. What stays empty at a window's end is padding, which is no target.
Documents of less than two tokens have no target and are left out.

Documents are packed in groups of `GROUP_DOCUMENTS`, so the memory is that of a group, and the index
follows from the shard's lengths and `seq_len` alone. It is kept in a file between starts, which
all processes map: 16 bytes a piece and 8 a window. Without the file it is made anew, the same.

Shape legend: T = seq_len.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triax.common.files import replace_bytes
from triax.data.read.digest import shard_digest
from triax.data.read.packing import best_fit
from triax.data.read.shards import Shard

log = logging.getLogger(__name__)

GROUP_DOCUMENTS = 1 << 20
_VERSION = 1
_HEADER_FIELDS = 7

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class PackedShard:
    """Which pieces of a shard make which window."""

    starts: Numbers
    """[num_pieces]: where each piece begins in the shard, window by window."""
    lengths: Numbers
    """[num_pieces], in tokens, each from 2 to T + 1."""
    offsets: Numbers
    """[num_windows + 1]: the first piece of each window."""
    num_documents: int
    """That are read."""
    num_cut: int
    """Of these, the ones that no window could hold."""
    num_tokens: int
    """In all pieces."""

    @property
    def num_windows(self) -> int:
        """Samples of this shard."""
        return len(self.offsets) - 1

    def pieces(self, window: int) -> list[tuple[int, int]]:
        """Start and length of what makes up a window."""
        span = slice(self.offsets[window], self.offsets[window + 1])
        return list(zip(self.starts[span].tolist(), self.lengths[span].tolist(), strict=True))


def pack(document_starts: Numbers, document_lengths: Numbers, seq_len: int) -> PackedShard:
    """Pack documents, group by group.

    Args:
        document_starts, document_lengths: [num_documents], in tokens.
    """
    groups = range(0, len(document_lengths), GROUP_DOCUMENTS)
    packed = [
        _pack_group(
            document_starts[first : first + GROUP_DOCUMENTS],
            document_lengths[first : first + GROUP_DOCUMENTS],
            seq_len,
        )
        for first in groups
    ]
    starts, lengths, sizes = (
        np.concatenate([np.zeros(0, np.int64), *(group[number] for group in packed)])
        for number in range(3)
    )
    return PackedShard(
        starts, lengths, np.append(0, np.cumsum(sizes)),
        num_documents=int((document_lengths > 1).sum()),
        num_cut=int((document_lengths > seq_len + 1).sum()),
        num_tokens=int(lengths.sum()),
    )  # fmt: skip


def _pack_group(
    starts: Numbers, lengths: Numbers, seq_len: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Starts and lengths of pieces, window by window, and how many pieces each window has."""
    num_targets = (lengths - 1).clip(min=0)
    num_pieces = -(-num_targets // seq_len)
    owners = np.repeat(np.arange(len(lengths)), num_pieces)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    piece_starts = starts[owners] + numbers * seq_len
    piece_lengths = np.minimum(num_targets[owners] - numbers * seq_len, seq_len) + 1
    bins = best_fit(piece_lengths, seq_len + 1)
    return piece_starts[bins.pieces], piece_lengths[bins.pieces], np.diff(bins.offsets)


def open_packed(shard: Shard, seq_len: int) -> PackedShard:
    """The packing of a shard, from the index file if there is one, which is made else.

    The file is only a saving: one that is damaged is written anew, and where none can be written
    the index is held in memory.

    Raises:
        UserError: the shard can't be read.
    """
    path = _cache_folder() / f"{shard_digest(shard.prefix)}-{seq_len}.npy"
    if (found := _load(path, shard, seq_len)) is not None:
        return found
    lengths = shard.document_lengths()
    packed = pack(np.cumsum(lengths) - lengths, lengths, seq_len)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, _to_bytes(packed, seq_len))
    except OSError as error:
        log.warning("%s: the packing's index isn't kept: %s", path, error)
    return _load(path, shard, seq_len) or packed


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "triax" / "packing"


def _to_bytes(packed: PackedShard, seq_len: int) -> bytes:
    header = [
        _VERSION, seq_len, packed.num_documents, packed.num_cut, packed.num_tokens,
        len(packed.starts), packed.num_windows,
    ]  # fmt: skip
    parts = (np.array(header), packed.starts, packed.lengths, packed.offsets)
    return np.concatenate(parts).astype("<i8").tobytes()


def _load(path: Path, shard: Shard, seq_len: int) -> PackedShard | None:
    """What a file holds, mapped; None where there is none that could be this shard's."""
    try:
        numbers = np.memmap(path, dtype="<i8", mode="r").view(np.ndarray)
    except (OSError, ValueError):
        return None
    if len(numbers) < _HEADER_FIELDS:
        return None
    version, length, num_documents, num_cut, num_tokens, num_pieces, num_windows = numbers[
        :_HEADER_FIELDS
    ].tolist()
    if (version, length) != (_VERSION, seq_len) or min(num_pieces, num_windows) < 0:
        return None
    if len(numbers) != _HEADER_FIELDS + 2 * num_pieces + num_windows + 1:
        return None
    ends = np.cumsum([_HEADER_FIELDS, num_pieces, num_pieces])
    _, starts, lengths, offsets = np.split(numbers, ends)
    packed = PackedShard(starts, lengths, offsets, num_documents, num_cut, num_tokens)
    return packed if _is_sound(packed, shard, seq_len) else None


def _is_sound(packed: PackedShard, shard: Shard, seq_len: int) -> bool:
    """Whether every piece lies in the shard, and every window holds its own."""
    starts, lengths, offsets = packed.starts, packed.lengths, packed.offsets
    if offsets[0] != 0 or offsets[-1] != len(starts) or (np.diff(offsets) < 1).any():
        return False
    if not len(starts):
        return packed.num_tokens == 0
    return bool(
        lengths.sum() == packed.num_tokens
        and lengths.min() >= 2
        and starts.min() >= 0
        and (starts + lengths).max() <= shard.num_tokens
        and np.add.reduceat(lengths, offsets[:-1]).max() <= seq_len + 1
    )
