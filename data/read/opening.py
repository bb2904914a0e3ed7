"""Opens a prefix as what it holds: text, or conversations."""

from __future__ import annotations

from pathlib import Path

from triax.common.errors import UserError
from triax.data.config import DataConfig, TooLong
from triax.data.read.conversations import Conversations
from triax.data.read.shards import Shard, find_shards
from triax.data.read.source import Packing, Source
from triax.data.read.token_weights import TokenWeights


def open_source(
    prefix: Path | str,
    seq_len: int,
    vocab_size: int,
    *,
    too_long: TooLong = "drop",
    packing: Packing = "stream",
) -> Source:
    """Open all shards of a prefix (see `find_shards`).

    Args:
        too_long: what is done to conversations that no window takes.
        packing: of text; conversations are always packed.

    Raises:
        UserError: a shard is missing or damaged, there is no whole window, or some of the shards
            hold text and others conversations.
    """
    shards = [Shard.open(path) for path in find_shards(prefix)]
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


def open_sources(data: DataConfig, vocab_size: int) -> list[Source]:
    """The training data, in the config's order.

    Raises:
        UserError: as `open_source`.
    """
    return [
        open_source(
            source.path, data.seq_len, vocab_size, too_long=data.too_long, packing=data.packing
        )
        for source in data.sources
    ]
