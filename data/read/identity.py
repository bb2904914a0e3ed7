"""What a source is, told from its contents: a path and a name may come to mean other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from triax.common.errors import record_errors
from triax.data.config import SourceConfig
from triax.data.read.digest import shard_digest
from triax.data.read.source import Source


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


def recorded_validation(record: Mapping[str, Any]) -> Identity | None:
    """What a run validated on; None where there was nothing, or an earlier version ran.

    Raises:
        UserError: the record is damaged.
    """
    found = record.get("validation")
    with record_errors():
        return None if found is None else Identity.from_json(found)
