"""How many bytes of text each token stands for: what bits per byte are counted by."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders

from triax.common.tokens import IGNORE_INDEX
from triax.models.batch import Batch

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.int64]:
    """The bytes of UTF-8 that each token id adds to a text: int64 (vocab_size,).

    A byte-level token has a character for every byte. In SentencePiece's vocabularies a token is
    its text, with a mark for a space, or `<0xNN>` for a byte. Special tokens, which stand for no
    text, and ids that the tokenizer lacks have 0.
    """
    sizes = np.zeros(vocab_size, np.int64)
    added = tokenizer.get_added_tokens_decoder()
    is_byte_level = _is_byte_level(tokenizer)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size:
            continue
        if index in added:
            sizes[index] = 0 if added[index].special else len(token.encode())
        elif is_byte_level:
            sizes[index] = len(token)
        elif _BYTE.fullmatch(token):
            sizes[index] = 1
        else:
            sizes[index] = len(token.replace(_SPACE, " ").encode())
    return sizes


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """A decoder tells: what it joins are bytes. Others may stand around it in a sequence."""
    decoder = tokenizer.decoder
    if decoder is None:
        return False
    return isinstance(decoder, decoders.ByteLevel) or '"ByteLevel"' in str(
        decoder.__getstate__().decode()
    )


def target_bytes(sizes: NDArray[np.int64], targets: NDArray[np.int64]) -> int:
    """The bytes of a batch's targets; what is ignored has none."""
    return int(sizes[targets[targets != IGNORE_INDEX]].sum())


def text_bytes(sizes: NDArray[np.int64], batches: Iterable[Batch]) -> int | None:
    """Of the text of all targets; None where some count more than others: their loss is a weighted
    mean, which doesn't tell what all of the text costs.

    Args:
        sizes: of each token, see `token_bytes`.
    """
    total = 0
    for batch in batches:
        weights_BT = batch.weights_BT
        if weights_BT is not None and bool((weights_BT[batch.is_target_BT] != 1).any()):
            return None
        total += target_bytes(sizes, batch.targets_BT.numpy())
    return total
