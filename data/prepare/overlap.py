"""How many validation documents a model meets in training: equal documents of two splits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from triax.data.read.inspection import document_hashes
from triax.data.read.shards import Shard

_BATCH = 1 << 16
"""Training documents that are looked up at a time."""


def count_shared(validation: Sequence[Path], training: Sequence[Path]) -> int:
    """Count the validation documents whose tokens are, all of them, a training document too.

    Reads all shards once. Documents are told apart by 64-bit hashes; those of validation are held,
    in less than 16 bytes a document.

    Args:
        validation, training: the prefixes of their shards.

    Raises:
        UserError: a shard is damaged.
    """
    ours = np.fromiter(document_hashes(map(Shard.open, validation)), np.uint64)
    if not len(ours):
        return 0
    ours.sort()
    is_shared = np.zeros(len(ours), np.bool_)
    hashes = document_hashes(map(Shard.open, training))
    while len(theirs := np.fromiter(islice(hashes, _BATCH), np.uint64)):
        places = np.minimum(np.searchsorted(ours, theirs), len(ours) - 1)
        is_shared[places[ours[places] == theirs]] = True
    # Of equal ones the first was found, and each counts.
    return int(is_shared[np.searchsorted(ours, ours)].sum())
