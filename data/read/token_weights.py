"""How much each token of a shard counts as a target: `PREFIX.weights`, beside `.bin` and `.idx`.

    magic "TRIAXWTS" | version u64 | group_size u64 | num_tokens u64
    xxh3_128 of the weights u8[16]
    weights f16[num_tokens]

all little-endian. Its presence says that the shard's documents are conversations, which are never
cut: `group_size` of them in a row belong together, 1, or 2 where each pair is a preferred answer
and another one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from triax.common.errors import UserError
from triax.common.files import fsync_folder, is_file, replace_bytes
from triax.data.read.shard_index import Array, file_size, with_suffix

SUFFIX = ".weights"
_MAGIC = b"TRIAXWTS"
_VERSION = 1
_HEADER = struct.Struct("<8sQQQ16s")
_DTYPE = np.dtype("<f2")
_MEND = "copy the shard again or prepare it anew"


@dataclass(frozen=True)
class TokenWeights:
    """The weights of a shard, mapped; nothing is held in memory."""

    group_size: int
    digest: bytes
    """Of all weights: two shards of the same text may be learned from in different ways."""
    _weights: Array = field(repr=False)

    @staticmethod
    def of(prefix: Path, num_tokens: int) -> TokenWeights | None:
        """Those of a shard with so many tokens; None where it is plain text.

        Raises:
            UserError: the file is damaged, or another shard's.
        """
        path = with_suffix(prefix, SUFFIX)
        if not has_weights(prefix):
            return None
        size = file_size(path)
        promised = _HEADER.size + num_tokens * _DTYPE.itemsize
        if size != promised:
            raise UserError(
                f"{path}: {size:,} bytes, but {num_tokens:,} tokens' weights take {promised:,}; "
                f"{_MEND}"
            )
        try:
            mapped: Any = np.memmap(path, dtype="u1", mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be mapped: {error}; {_MEND}") from None
        magic, version, group_size, known, digest = _HEADER.unpack(mapped[: _HEADER.size].tobytes())
        if (magic, version, known) != (_MAGIC, _VERSION, num_tokens) or group_size not in (1, 2):
            raise UserError(f"{path}: no file of token weights of this shard; {_MEND}")
        return TokenWeights(group_size, digest, mapped[_HEADER.size :].view(_DTYPE))

    def read(self, start: int, length: int) -> Array:
        """Of tokens `start` to `start + length`: [length] fp32, a copy."""
        return self._weights[start : start + length].astype(np.float32)


def has_weights(prefix: Path) -> bool:
    """Whether a shard holds conversations."""
    return is_file(with_suffix(prefix, SUFFIX))


def recorded_group_size(prefix: Path) -> int | None:
    """Conversations that belong together in a shard; None where it is plain text, or damaged."""
    if not has_weights(prefix):
        return None
    with with_suffix(prefix, SUFFIX).open("rb") as file:
        header = file.read(_HEADER.size)
    return int(_HEADER.unpack(header)[2]) if len(header) == _HEADER.size else None


@dataclass
class WeightsWriter:
    """Collects a shard's weights; `write` before the shard's index vouches for them."""

    prefix: Path
    group_size: int
    _parts: list[bytes] = field(default_factory=list, init=False, repr=False)

    def add(self, weights: Array) -> None:
        """Append those of a document: [num_tokens]."""
        self._parts.append(weights.astype(_DTYPE).tobytes())

    def write(self) -> tuple[str, str]:
        """Write the file; its name and the xxh3 of its bytes.

        Raises:
            UserError: it can't be written.
        """
        content = b"".join(self._parts)
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.group_size,
            len(content) // _DTYPE.itemsize,
            xxhash.xxh3_128_digest(content),
        )
        path = with_suffix(self.prefix, SUFFIX)
        replace_bytes(path, header + content, fsync=True)
        fsync_folder(path.parent)
        return path.name, xxhash.xxh3_128_hexdigest(header + content)
