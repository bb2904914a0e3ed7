"""Which documents are kept for validation: decided by their numbers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from triax.common.errors import UserError
from triax.data.read.shards import Array

TRAIN, VALIDATION = "train", "validation"


def assign_splits(
    documents: Iterator[Array], validation_fraction: float, num_done: Mapping[str, int]
) -> Iterator[dict[str, Array]]:
    """Give each document its split, by a hash of its number.

    With two or more documents both splits get one: the last goes where there is none yet. A
    single document is cut in two. With a fraction of 0 all is for training.

    Args:
        documents: [num_tokens] each, the end-of-text token last; the first `num_done` of all
            are left out already.
        num_done: documents of each split before these.

    Yields:
        For each document its tokens by split, mostly one entry.

    Raises:
        UserError: there is one document, too short to be cut.
    """
    written = dict(num_done)
    number = sum(written.values())
    held = next(documents, None)
    if held is None:
        return
    for following in documents:
        split = _split_of(number, validation_fraction)
        yield {split: held}
        written[split] += 1
        number += 1
        held = following
    if validation_fraction == 0:
        yield {TRAIN: held}
    elif number == 0:
        yield _cut(held, validation_fraction)
    elif 0 in written.values():
        yield {min(written, key=lambda split: written[split]): held}
    else:
        yield {_split_of(number, validation_fraction): held}


def _split_of(number: int, validation_fraction: float) -> str:
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest()
    is_validation = int.from_bytes(digest, "little") < validation_fraction * 2**64
    return VALIDATION if is_validation else TRAIN


def _cut(tokens: Array, validation_fraction: float) -> dict[str, Array]:
    """Beginning and end of the only document, each with the end-of-text token."""
    num_train = int((len(tokens) - 1) * (1 - validation_fraction))
    if num_train < 1:
        raise UserError(
            "too few documents: one of a single token cannot be split; give more text, "
            "or a validation fraction of 0"
        )
    return {
        TRAIN: np.append(tokens[:num_train], tokens[-1]),
        VALIDATION: tokens[num_train:],
    }
