"""Which documents are kept for validation: planned before any of them is encoded.

Of many documents each goes its way by a hash of its number alone. Of few ones that is a draw in
which a single long document decides, so their lengths are looked at first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from triax.common.errors import UserError
from triax.data.read.shard_index import Array
from triax.data.record import SplitPlan

TRAIN, VALIDATION = "train", "validation"
_FEWEST_EXPECTED = 10
"""Documents that the smaller split can expect where their number decides."""
_MOST_PLANNED = 100_000
"""Documents whose lengths are read, twice, at the most."""


def plan_split(lengths: Iterator[int], validation_fraction: float) -> SplitPlan:
    """Decide which documents are for validation, and whether one is cut in two.

    With ten expected in the smaller split each document goes by the hash of its number. Fewer
    ones go to validation in the order of their hashes until that has its share of the text; the
    one in which that is reached is cut, and validation gets its end.

    Args:
        lengths: of the documents in order, in characters; of many ones only the first are read.
        validation_fraction: at least 0 and below 1; 0 means that all is for training.
    """
    if validation_fraction == 0:
        return SplitPlan(below=0)
    below = int(validation_fraction * 2**64)
    enough = _FEWEST_EXPECTED / min(validation_fraction, 1 - validation_fraction)
    num_read = int(min(enough, _MOST_PLANNED))
    found = list(islice(lengths, num_read))
    hashes = [_hash(number) for number in range(len(found))]
    if len(found) == num_read:
        # Both splits get one at least.
        return SplitPlan(below=min(max(below, min(hashes) + 1), max(hashes)))
    return _plan_few(found, hashes, validation_fraction) if found else SplitPlan(below=below)


def _plan_few(
    lengths: Sequence[int], hashes: Sequence[int], validation_fraction: float
) -> SplitPlan:
    missing = validation_fraction * sum(lengths)
    for number in sorted(range(len(lengths)), key=hashes.__getitem__):
        if missing <= lengths[number]:
            break
        missing -= lengths[number]
    share = min(1.0, missing / lengths[number])
    is_only = len(lengths) == 1
    return SplitPlan(below=0 if is_only else hashes[number], cut=number, cut_share=share)


def plan_whole(documents: Iterator[object], validation_fraction: float) -> SplitPlan:
    """As `plan_split`, for documents that are never cut: of few ones the nearest number goes to
    validation, one at least where there are two.

    Args:
        documents: of many ones only the first are read.
    """
    if validation_fraction == 0:
        return SplitPlan(below=0)
    enough = _FEWEST_EXPECTED / min(validation_fraction, 1 - validation_fraction)
    num_read = int(min(enough, _MOST_PLANNED))
    num_found = sum(1 for _ in islice(documents, num_read))
    if num_found == num_read:
        return SplitPlan(below=int(validation_fraction * 2**64))
    num_kept = min(max(1, round(validation_fraction * num_found)), num_found - 1)
    hashes = sorted(_hash(number) for number in range(num_found))
    return SplitPlan(below=hashes[num_kept] if num_found else 0)


def is_for_validation(number: int, plan: SplitPlan) -> bool:
    """Whether a document goes there as a whole, by its number."""
    return _hash(number) < plan.below


def assign_splits(
    documents: Iterator[Array], plan: SplitPlan, first: int = 0, num_begin: int = 0
) -> Iterator[dict[str, Array]]:
    """Give each document its split.

    Args:
        documents: [num_tokens] each, the end-of-text token last.
        first: the number of the first of them.
        num_begin: tokens that begin each document, 0 or 1; both parts of one that is cut do so.

    Yields:
        For each document its tokens by split: one entry, or two where it is cut.

    Raises:
        UserError: there is one document, too short to be cut.
    """
    for number, tokens in enumerate(documents, first):
        if number == plan.cut:
            yield _cut(tokens, plan, num_begin)
        else:
            yield {VALIDATION if is_for_validation(number, plan) else TRAIN: tokens}


def _hash(number: int) -> int:
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _cut(tokens: Array, plan: SplitPlan, num_begin: int) -> dict[str, Array]:
    """Beginning and end of a document, each a document of its own."""
    begin, end = tokens[:num_begin], tokens[-1:]
    num_inner = len(tokens) - num_begin - 1
    if num_inner >= 2:
        num_train = min(max(1, int(num_inner * (1 - plan.cut_share))), num_inner - 1)
        middle = num_begin + num_train
        return {
            TRAIN: np.concatenate((tokens[:middle], end)),
            VALIDATION: np.concatenate((begin, tokens[middle:])),
        }
    if plan.below == 0:  # it is the only one
        raise UserError(
            "too few documents: one of a single token cannot be split; give more text, "
            "or a validation fraction of 0"
        )
    return {VALIDATION: tokens}
