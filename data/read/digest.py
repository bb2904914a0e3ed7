"""What a shard holds, as a short digest."""

from __future__ import annotations

from pathlib import Path

import xxhash

from triax.common.errors import UserError
from triax.data.read.shard_index import file_size, with_suffix
from triax.data.read.shards import Shard
from triax.data.read.token_weights import TokenWeights, has_weights
from triax.data.remote.files import open_remote
from triax.data.remote.mirror import pointer_at

_EDGE_BYTES = 4096
_READ_BYTES = 1 << 22


def shard_digest(prefix: Path) -> str:
    """xxh3 of a shard's whole index, and of its tokens' number, beginning and end: 16 digits.

    The index has the length of every document, so other text gives another digest at once; the
    tokens' edges tell apart what has equal lengths, such as the same text by another tokenizer.
    Where tokens have weights, those tell apart what is learned of the same text.
    Reads 20 bytes a document, as opening the shard does. It is the same wherever the shard lies.

    Raises:
        UserError: a file can't be read.
    """
    digest = xxhash.xxh3_64()
    idx, bin_ = with_suffix(prefix, ".idx"), with_suffix(prefix, ".bin")
    file_size(idx)  # refuses a pipe, which would wait for ever
    pointer = pointer_at(bin_)
    size = file_size(bin_) if pointer is None else pointer.size
    digest.update(size.to_bytes(8, "little"))
    try:
        with idx.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
        with bin_.open("rb") if pointer is None else open_remote(pointer) as file:
            for start in (0, max(0, size - _EDGE_BYTES)):
                file.seek(start)
                digest.update(file.read(_EDGE_BYTES))
    except OSError as error:
        raise UserError(f"{prefix}: can't be read: {error.strerror}; restore it") from None
    if has_weights(prefix):
        weights = TokenWeights.of(prefix, Shard.open(prefix).num_tokens)
        assert weights is not None
        digest.update(weights.digest)
    return digest.hexdigest()
