"""The tokens of a shard that stays in a store, read as an array is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from triax.data.read.shard_index import Array
from triax.data.remote.cache import Cache
from triax.data.remote.stores import RemoteFile


@dataclass(frozen=True)
class RemoteTokens:
    """A `.bin` in a store. A slice reads its bytes, through the cache."""

    file: RemoteFile
    dtype: np.dtype[Any]
    cache: Cache

    def __getitem__(self, span: slice) -> Array:
        """[stop - start] tokens.

        Raises:
            UserError: the file was replaced, or its store doesn't answer.
        """
        start, stop, _ = span.indices(self.file.size // self.dtype.itemsize)
        size = self.dtype.itemsize
        content = self.cache.read(self.file, start * size, stop * size) if stop > start else b""
        return np.frombuffer(content, self.dtype)
