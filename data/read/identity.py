"""What a source is, told from its contents: a path and a name may come to mean other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from triax.common.errors import UserError, record_errors
from triax.data.config import SourceConfig
from triax.data.read.shards import Shard, file_size, with_suffix
from triax.data.read.source import Source
from triax.data.read.token_weights import TokenWeights, has_weights

_EDGE_BYTES = 4096
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Identity:
    """A source's contents and the place where they lie now."""

    path: str
    """The prefix, as the config has it."""
    num_windows: int
    shards: tuple[str, ...]
    """A digest of each shard, in order; see `shard_digest`."""

    @property
    def key(self) -> str:
        """Equal for equal shards in the same order; 32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest("\n".join(self.shards).encode())

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint's record."""
        return {"path": self.path, "num_windows": self.num_windows, "shards": list(self.shards)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Identity:
        """The inverse of `to_json`."""
        return Identity(value["path"], value["num_windows"], tuple(value["shards"]))


def identify_sources(configs: Sequence[SourceConfig], sources: Sequence[Source]) -> list[Identity]:
    """The identity of each source, in order.

    Raises:
        UserError: a shard can't be read.
    """
    return [identify(config.path, source) for config, source in zip(configs, sources, strict=True)]


def identify(path: str, source: Source) -> Identity:
    """The identity of one dataset that lies at a prefix.

    Raises:
        UserError: a shard can't be read.
    """
    digests = tuple(shard_digest(prefix) for prefix in source.prefixes)
    return Identity(path, source.num_windows, digests)


def shard_digest(prefix: Path) -> str:
    """xxh3 of a shard's whole index, and of its tokens' number, beginning and end: 16 digits.

    The index has the length of every document, so other text gives another digest at once; the
    tokens' edges tell apart what has equal lengths, such as the same text by another tokenizer.
    Where tokens have weights, those tell apart what is learned of the same text.
    Reads 20 bytes a document, as opening the shard does.

    Raises:
        UserError: a file can't be read.
    """
    digest = xxhash.xxh3_64()
    idx, bin_ = with_suffix(prefix, ".idx"), with_suffix(prefix, ".bin")
    file_size(idx)  # refuses a pipe, which would wait for ever
    size = file_size(bin_)
    digest.update(size.to_bytes(8, "little"))
    try:
        with idx.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
        with bin_.open("rb") as file:
            for start in (0, max(0, size - _EDGE_BYTES)):
                file.seek(start)
                digest.update(file.read(_EDGE_BYTES))
    except OSError as error:
        raise UserError(f"{prefix}: can't be read: {error.strerror}; restore it") from None
    weights = (
        TokenWeights.of(prefix, Shard.open(prefix).num_tokens) if has_weights(prefix) else None
    )
    if weights is not None:
        digest.update(weights.digest)
    return digest.hexdigest()


def recorded_validation(record: Mapping[str, Any]) -> Identity | None:
    """What a run validated on; None where there was nothing, or an earlier version ran.

    Raises:
        UserError: the record is damaged.
    """
    found = record.get("validation")
    with record_errors():
        return None if found is None else Identity.from_json(found)
