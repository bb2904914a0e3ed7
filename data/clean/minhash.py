"""MinHash signatures and their bands (Broder 1997; Leskovec et al. 2014, 3.4).

rensa's R-MinHash makes the signatures: 32 bits a hash. Two texts of Jaccard similarity s share at
least one of b bands of r hashes with probability 1 - (1 - s^r)^b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triax.data.clean.config import NearConfig
from triax.data.clean.extras import needs
from triax.data.clean.shingles import shingle_hashes

Array = NDArray[Any]


def signatures(texts: Sequence[str], config: NearConfig) -> tuple[Array, Array]:
    """The signatures of the texts that have at least one n-gram.

    Returns:
        uint32 [num, bands * rows], and the texts' numbers [num].
    """
    with needs("rensa", "near_duplicates"):
        from rensa import RMinHash
    hashes, offsets = shingle_hashes(texts, config.ngram)
    numbers = np.flatnonzero(np.diff(offsets) > 0)
    num_hashes = config.bands * config.rows
    if not len(numbers):
        return np.empty((0, num_hashes), np.uint32), numbers
    # Between two texts that have some lie no n-grams: the kept offsets still are boundaries.
    rows = np.append(offsets[numbers], len(hashes)).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows, num_hashes, config.seed)
    return np.array(matrix.to_rows(), np.uint32), numbers


def band_keys(matrix: Array, config: NearConfig) -> Array:
    """A 64-bit hash of each band of each signature: [num, bands]."""
    bands = matrix.reshape(len(matrix), config.bands, config.rows).astype(np.uint64)
    keys = np.full((len(matrix), config.bands), 0x9E3779B97F4A7C15, np.uint64)
    keys += np.arange(config.bands, dtype=np.uint64)[None]
    for row in range(config.rows):
        keys ^= bands[:, :, row]
        keys *= np.uint64(0xFF51AFD7ED558CCD)
        keys ^= keys >> np.uint64(32)
    return keys
