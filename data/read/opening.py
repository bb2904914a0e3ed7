"""Opens a prefix as what it holds: text, or conversations."""

from __future__ import annotations

from pathlib import Path

from triax.common.errors import UserError
from triax.data.config import DataConfig, TooLong
from triax.data.read.conversations import Conversations
from triax.data.read.shards import Shard, find_shards
from triax.data.read.source import Packing, Source
from triax.data.read.token_weights import TokenWeights
from triax.data.remote.cache import Cache


def open_source(
    prefix: Path | str,
    seq_len: int,
    vocab_size: int,
    *,
    too_long: TooLong = "drop",
    packing: Packing = "stream",
    cache: Cache | None = None,
) -> Source:
    """Open all shards of a prefix (see `find_shards`).

    Args:
        too_long: what is done to conversations that no window takes.
        packing: of text; conversations are always packed.
        cache: for a dataset that is in a store.

    Raises:
        UserError: a shard is missing or damaged, there is no whole window, or some of the shards
            hold text and others conversations.
    """
    shards = [Shard.open(path, cache) for path in find_shards(prefix, cache)]
    weights = [TokenWeights.of(shard.prefix, shard.num_tokens) for shard in shards]
    found = [pair for pair in zip(shards, weights, strict=True) if pair[1] is not None]
    if not found:
        return Source(shards, seq_len, vocab_size, packing)
    known = [(shard, each) for shard, each in found if each is not None]
    if len(known) < len(shards):
        plain = next(s.prefix for s, each in zip(shards, weights, strict=True) if each is None)
        raise UserError(
            f"{plain}: has no .weights, which other shards of {prefix} have; copy them again"
        )
    return Conversations(known, seq_len, vocab_size, too_long)


def cache_of(data: DataConfig) -> Cache:
    """Where a run keeps what it reads of stores."""
    return Cache(None if data.cache_dir is None else Path(data.cache_dir), data.cache_size)


def open_set(data: DataConfig, prefix: str, vocab_size: int) -> Source:
    """A dataset as a run reads one for validation.

    Raises:
        UserError: as `open_source`.
    """
    return open_source(
        prefix, data.seq_len, vocab_size, too_long=data.too_long, cache=cache_of(data)
    )


def open_sources(data: DataConfig, vocab_size: int) -> list[Source]:
    """The training data, in the config's order.

    Raises:
        UserError: as `open_source`.
    """
    cache = cache_of(data)
    return [
        open_source(
            source.path,
            data.seq_len,
            vocab_size,
            too_long=data.too_long,
            packing=data.packing,
            cache=cache,
        )
        for source in data.sources
    ]
