"""Token shards on disk: Megatron's `PREFIX.bin` and `PREFIX.idx` (MMIDIDX version 1).

The `.bin` holds token ids back to back. The `.idx` holds, all little-endian:

    magic "MMIDIDX\\0\\0" | version u64 | dtype code u8 | num_sequences u64 | num_boundaries u64
    lengths   int32[num_sequences]     tokens in each sequence
    pointers  int64[num_sequences]     byte offset of each sequence in the .bin
    documents int64[num_boundaries]    0, then the sequence number at which each document ends

A document may consist of several sequences. `num_boundaries` is the number of documents plus
one. The `.idx` is written last, so its presence says that the shard is whole.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import xxhash

from triax.common.errors import UserError
from triax.common.files import fsync_folder, is_file, is_folder, write_errors
from triax.data.read.remote_tokens import RemoteTokens
from triax.data.read.shard_index import (
    DTYPES,
    HEADER,
    MAGIC,
    VERSION,
    Array,
    chunks,
    map_file,
    open_index,
    with_suffix,
)
from triax.data.remote.cache import Cache
from triax.data.remote.mirror import mirrored_dataset, pointer_at

_CODES = {np.dtype(name): code for code, name in DTYPES.items()}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest dtype that Megatron uses for a vocabulary: uint16 below 65,500, else int32."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


def shard_prefix(prefix: Path, number: int) -> Path:
    """The prefix of one shard of a series: `PREFIX-00007`."""
    return with_suffix(prefix, f"-{number:05d}")


@dataclass(frozen=True)
class Shard:
    """A checked, read-only shard. Nothing is held in memory: both files are mapped, or
    tokens are read from a store through a cache.

    Positions count tokens of the concatenated stream of all documents.
    """

    prefix: Path
    dtype: np.dtype[Any]
    """Integer type of a token in the file."""
    num_tokens: int
    num_documents: int
    _tokens: Array | RemoteTokens = field(repr=False)
    """[num_tokens], `dtype`."""
    _pointers: Array = field(repr=False)
    """[num_sequences] int64, bytes."""
    _boundaries: Array = field(repr=False)
    """[num_documents + 1] int64, sequence numbers."""

    @staticmethod
    def open(prefix: Path | str, cache: Cache | None = None) -> Shard:
        """Map a shard after checking that both files are what the index promises.

        Reads the whole index once (20 bytes a document) and no tokens.

        Args:
            cache: for tokens that are in a store.

        Raises:
            UserError: a file is missing, unreadable, damaged or empty.
        """
        prefix = Path(prefix)
        dtype, num_tokens, pointers, boundaries = open_index(prefix)
        bin_ = with_suffix(prefix, ".bin")
        pointer = pointer_at(bin_)
        tokens = (
            map_file(bin_, dtype, offset=0, count=num_tokens)
            if pointer is None
            else RemoteTokens(pointer, dtype, cache or Cache())
        )
        return Shard(prefix, dtype, num_tokens, len(boundaries) - 1, tokens, pointers, boundaries)

    @property
    def is_remote(self) -> bool:
        """Whether tokens are read from a store."""
        return isinstance(self._tokens, RemoteTokens)

    def read(self, start: int, length: int) -> Array:
        """Tokens `start` to `start + length` of the stream: [length] int64, a copy."""
        assert 0 <= start <= start + length <= self.num_tokens
        return self._tokens[start : start + length].astype(np.int64)

    def document_ids(self, start: int, length: int) -> Array:
        """Which document each token of a range is from: [length] int32.

        Ids count from the document of the first token, which is 0. An empty document takes a
        number too. Costs O(log num_documents) and the documents within the range.
        """
        assert 0 <= start <= start + length <= self.num_tokens
        if length == 0:
            return np.zeros(0, np.int32)
        first, last = self.document_at(start), self.document_at(start + length - 1)
        next_starts = self._pointers[self._boundaries[first + 1 : last + 1]] // self.dtype.itemsize
        positions = np.arange(start, start + length)
        return np.searchsorted(next_starts, positions, side="right").astype(np.int32)

    def document_at(self, position: int) -> int:
        """Number of the document that holds the token at `position`."""
        return bisect_right(range(self.num_documents), position, key=self.document_start) - 1

    def document_start(self, document: int) -> int:
        """Position of a document's first token; for `num_documents`, the end of the stream."""
        sequence = int(self._boundaries[document])
        if sequence == len(self._pointers):
            return self.num_tokens
        return int(self._pointers[sequence]) // self.dtype.itemsize

    def document_lengths(self) -> Array:
        """Tokens in each document: [num_documents] int64."""
        ends = np.append(self._pointers // self.dtype.itemsize, self.num_tokens)
        return np.diff(ends[self._boundaries])

    def token_range(self) -> tuple[int, int]:
        """The smallest and the largest token id; reads the whole shard."""
        ranges = [
            (int(tokens.min()), int(tokens.max()))
            for tokens in (self._tokens[piece] for piece in chunks(self.num_tokens))
        ]
        return min(low for low, _ in ranges), max(high for _, high in ranges)


def find_shards(prefix: Path | str, cache: Cache | None = None) -> list[Path]:
    """The prefixes of a dataset's shards: PREFIX itself, or PREFIX-00000, PREFIX-00001, ...

    Of a dataset in a store they are those of its mirror (`triax.data.remote.mirror`).

    Args:
        cache: that keeps the mirror.

    Raises:
        UserError: there is none (the message names what is near), or one of the series is missing;
            or the store doesn't answer.
    """
    prefix = mirrored_dataset(prefix, cache)
    if is_file(with_suffix(prefix, ".idx")):
        return [prefix]
    if is_folder(prefix):
        raise UserError(f"{prefix}: a folder, but a dataset's prefix is expected; {_near(prefix)}")
    names = _names(prefix.parent)
    pattern = re.compile(re.escape(prefix.name) + r"-(\d{5,})\.idx")
    numbers = sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))
    if not numbers:
        raise UserError(_not_found(prefix, names))
    missing = sorted(set(range(numbers[-1])) - set(numbers))
    if missing:
        absent = with_suffix(shard_prefix(prefix, missing[0]), ".idx")
        raise UserError(
            f"{absent}: missing, though the series goes on to {numbers[-1]:05d}; restore it, "
            "or name the shards that you want one by one"
        )
    return [shard_prefix(prefix, number) for number in numbers]


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (OSError, ValueError):
        return []


def _not_found(prefix: Path, names: list[str]) -> str:
    message = f"{prefix}: no such dataset, neither {prefix.name}.idx nor {prefix.name}-00000.idx"
    if prefix.suffix in (".idx", ".bin"):
        return f"{message}; a prefix is given without .idx or .bin: {prefix.with_suffix('')}"
    if f"{prefix.name}.bin" in names:
        return f"{message}; there is a {prefix.name}.bin alone, without its index"
    return f"{message}; {_near(prefix.parent)}"


def _near(folder: Path) -> str:
    """What a wrong prefix may have meant."""
    indices = [name for name in _names(folder) if name.endswith(".idx")]
    prefixes = sorted({re.sub(r"(-\d{5,})?\.idx$", "", name) for name in indices})
    if prefixes:
        return f"in {folder} there are: {', '.join(prefixes[:8])}"
    return f"{folder} holds no .idx files; `triax data prepare` writes them"


@dataclass
class ShardWriter:
    """Writes one shard; it appears only when the `with` block ends without an exception.

    Tokens go to a temporary file. At the end the `.bin` is synced and renamed, then the `.idx`:
    a crash at any moment leaves a whole shard or no `.idx`.

    Raises:
        UserError: a file cannot be written, for instance because the disk is full.
    """

    prefix: Path
    dtype: np.dtype[Any]
    num_tokens: int = field(default=0, init=False)
    num_documents: int = field(default=0, init=False)
    checksums: dict[str, str] = field(default_factory=dict, init=False)
    """xxh3 of each file's bytes by its name, once the block has ended: 32 digits."""
    _bin_hash: Any = field(default_factory=xxhash.xxh3_128, init=False, repr=False)
    _lengths: array[int] = field(default_factory=lambda: array("i"), init=False, repr=False)
    _bin: BinaryIO = field(init=False, repr=False)

    def __enter__(self) -> Self:
        with write_errors(self._temporary(".bin")):
            self._bin = self._temporary(".bin").open("wb")
        return self

    def add_document(self, tokens: Array) -> None:
        """Append one document: [num_tokens] of any integer type, within the range of `dtype`.

        Raises:
            UserError: it is longer than an index can say.
        """
        if tokens.size > np.iinfo(np.int32).max:
            raise UserError(f"{self.prefix}: a document has {tokens.size:,} tokens, above 2^31 - 1")
        limits = np.iinfo(self.dtype)
        if tokens.size:
            assert limits.min <= tokens.min() and tokens.max() <= limits.max
        written = tokens.astype(self.dtype).tobytes()
        with write_errors(self._temporary(".bin")):
            self._bin.write(written)
        self._bin_hash.update(written)
        self._lengths.append(tokens.size)
        self.num_tokens += tokens.size
        self.num_documents += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with write_errors(self.prefix):
                if exc_type is None:
                    self._commit()
        finally:
            self._discard()

    def _commit(self) -> None:
        _close_synced(self._bin)
        index = self._index()
        idx = self._temporary(".idx").open("wb")
        try:
            idx.write(index)
        finally:
            _close_synced(idx)
        # An idx from before must not vouch for the new bin.
        with_suffix(self.prefix, ".idx").unlink(missing_ok=True)
        self._temporary(".bin").replace(with_suffix(self.prefix, ".bin"))
        fsync_folder(self.prefix.parent)
        self._temporary(".idx").replace(with_suffix(self.prefix, ".idx"))
        fsync_folder(self.prefix.parent)
        self.checksums = {
            f"{self.prefix.name}.bin": self._bin_hash.hexdigest(),
            f"{self.prefix.name}.idx": xxhash.xxh3_128_hexdigest(index),
        }

    def _index(self) -> bytes:
        lengths = np.array(self._lengths, dtype="<i4")
        pointers = np.zeros(len(lengths), dtype="<i8")
        np.cumsum(lengths[:-1], out=pointers[1:])
        code = _CODES[self.dtype]
        header = HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1)
        pointers *= self.dtype.itemsize
        boundaries = np.arange(len(lengths) + 1, dtype="<i8")
        return b"".join((header, lengths.tobytes(), pointers.tobytes(), boundaries.tobytes()))

    def _discard(self) -> None:
        # Closing flushes, which fails a second time on a full disk.
        with suppress(OSError):
            self._bin.close()
        with suppress(OSError):
            self._temporary(".bin").unlink(missing_ok=True)
            self._temporary(".idx").unlink(missing_ok=True)

    def _temporary(self, suffix: str) -> Path:
        return with_suffix(self.prefix, f"{suffix}.partial")


def _close_synced(file: BinaryIO) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())
