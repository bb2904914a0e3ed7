"""Word n-grams of texts as 64-bit hashes, without a Python object for a word.

A word is a run of letters and digits. Letter case, accents and punctuation don't count, and all
numbers are one word, as in datatrove's `simplify_text` (which takes `3.14` for one number; here it
is two, and digits within a word count by their place alone). Where a script writes no spaces
(Chinese, Japanese), each character is a word.

The bytes of many texts are hashed at once: a word's hash is a difference of prefix sums of random
numbers times powers of an odd number, modulo 2^64 (Karp and Rabin 1987), then mixed.

Suffixes: B bytes, W words, G n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_BASE = 0x9E3779B97F4A7C15
_CHUNK = 1 << 18
"""Bytes hashed at once, so that the intermediate arrays stay in the cache."""
_NOT_WORD = re.compile(r"[\W_]+")
_MARKS = re.compile(r"[\u0300-\u036f\u0591-\u05bd\u064b-\u0652]+")
_ALONE = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_SEPARATOR, _LETTER, _DIGIT = 0, 1, 2


def _byte_kinds() -> Array:
    kinds = np.zeros(256, np.uint8)
    kinds[128:] = _LETTER
    for low, high in ("az", "AZ"):
        kinds[ord(low) : ord(high) + 1] = _LETTER
    kinds[ord("0") : ord("9") + 1] = _DIGIT
    return kinds


def _byte_values() -> Array:
    values = np.random.Generator(np.random.PCG64(20)).integers(1, 1 << 63, 256, np.uint64)
    values[ord("0") : ord("9") + 1] = values[ord("0")]
    values[ord("A") : ord("Z") + 1] = values[ord("a") : ord("z") + 1]
    return values


def _powers(base: int) -> Array:
    return np.multiply.accumulate(np.full(_CHUNK + 1, base, np.uint64))


_KINDS = _byte_kinds()
_VALUES = _byte_values()
_BYTE_NUMBERS = np.random.Generator(np.random.PCG64(50)).integers(1, 1 << 63, 256, np.uint64)
_POWERS = _powers(_BASE)
_INVERSES = _powers(pow(_BASE, -1, 1 << 64))


def plain(text: str) -> bytes:
    """The text as bytes whose letters and digits are its words."""
    if text.isascii():
        return text.encode()
    text = unicodedata.normalize("NFD", text.lower())
    return _NOT_WORD.sub(" ", _ALONE.sub(r" \1 ", _MARKS.sub("", text))).encode()


def word_hashes(data: bytes) -> tuple[Array, Array]:
    """The words of plain text.

    Returns:
        hashes [W] and the positions [W] of the words' first bytes.
    """
    parts, starts, begin = [], [], 0
    while begin < len(data):
        end = _chunk_end(data, begin)
        hashes, positions = _chunk_hashes(np.frombuffer(data, np.uint8, end - begin, begin))
        parts.append(hashes)
        starts.append(positions + begin)
        begin = end
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate(parts), np.concatenate(starts)


def _chunk_end(data: bytes, begin: int) -> int:
    """Behind a space or line break, if there is one: a longer word is parted."""
    end = begin + _CHUNK
    if end >= len(data):
        return len(data)
    return max(data.rfind(b" ", begin, end), data.rfind(b"\n", begin, end)) + 1 or end


def _chunk_hashes(bytes_B: Array) -> tuple[Array, Array]:
    kinds_B = _KINDS[bytes_B]
    is_word_B = kinds_B != _SEPARATOR
    edges = np.flatnonzero(is_word_B[1:] != is_word_B[:-1]) + 1
    first = [0] if is_word_B[0] else []
    last = [len(bytes_B)] if is_word_B[-1] else []
    edges = np.concatenate((first, edges, last)).astype(np.int64)
    starts_W, ends_W = edges[::2], edges[1::2]
    # Separators count too: a word's sum is the difference of two sums all the same.
    terms_B = _VALUES[bytes_B]
    is_digit_B = kinds_B == _DIGIT
    is_digit_B[1:] &= is_digit_B[:-1]
    is_digit_B[0] = False
    terms_B[is_digit_B] = 0
    terms_B *= _POWERS[: len(bytes_B)]
    sums_B = np.zeros(len(bytes_B) + 1, np.uint64)
    np.cumsum(terms_B, out=sums_B[1:])
    hashes_W = sums_B[ends_W] - sums_B[starts_W]
    hashes_W *= _INVERSES[starts_W]
    return _mixed(hashes_W), starts_W


def token_hashes(data: bytes) -> tuple[Array, Array]:
    """The tokens of UTF-8 text, byte by byte: stretches without white space, of which a character
    of three bytes or more begins a new one, for such scripts often write no spaces.

    Returns:
        hashes [W] and the positions [W] of the tokens' first bytes.
    """
    parts, starts, begin = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    while begin < len(data):
        end = _chunk_end(data, begin)
        bytes_B = np.frombuffer(data, np.uint8, end - begin, begin)
        is_space_B = (bytes_B == 32) | ((bytes_B >= 9) & (bytes_B <= 13))
        is_start_B = ~is_space_B
        is_start_B[1:] &= is_space_B[:-1] | (bytes_B[1:] >= 0xE0)
        starts_W = np.flatnonzero(is_start_B)
        # White space adds nothing, so a token's sum goes on to the next one's beginning.
        terms_B = np.where(is_space_B, np.uint64(0), _BYTE_NUMBERS[bytes_B])
        terms_B *= _POWERS[: len(bytes_B)]
        sums_B = np.zeros(len(bytes_B) + 1, np.uint64)
        np.cumsum(terms_B, out=sums_B[1:])
        hashes_W = np.diff(sums_B[np.append(starts_W, len(bytes_B))])
        hashes_W *= _INVERSES[starts_W]
        parts.append(_mixed(hashes_W))
        starts.append(starts_W + begin)
        begin = end
    return np.concatenate(parts), np.concatenate(starts)


def window_hashes(hashes_W: Array, length: int) -> tuple[Array, Array]:
    """Two 64-bit hashes of each window of so many words or tokens: [G] each."""
    return _combined(hashes_W, length), _combined(_mixed(hashes_W ^ np.uint64(_BASE)), length)


def shingle_hashes(texts: Sequence[str], ngram: int) -> tuple[Array, Array]:
    """The n-grams of each text, in their order; none of a text with fewer words.

    Returns:
        hashes [G], and offsets [len(texts) + 1] of each text's first n-gram among them.
    """
    encoded = list(map(plain, texts))
    lengths = np.array([len(data) + 1 for data in encoded], np.int64)
    begins = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    hashes_W, positions_W = word_hashes(b"\n".join(encoded) + b"\n" if encoded else b"")
    first_words = np.searchsorted(positions_W, begins)
    hashes_G = _combined(hashes_W, ngram)
    counts = np.diff(first_words)
    # An n-gram belongs to the text of its first word, unless it reaches into the next.
    rests_W = np.repeat(first_words[1:], counts) - np.arange(len(hashes_W))
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.maximum(counts - ngram + 1, 0), out=offsets[1:])
    return hashes_G[rests_W[: len(hashes_G)] >= ngram], offsets


def _combined(hashes_W: Array, ngram: int) -> Array:
    count = max(len(hashes_W) - ngram + 1, 0)
    hashes_G = hashes_W[:count].copy()
    for offset in range(1, ngram):
        hashes_G *= np.uint64(_BASE)
        hashes_G ^= hashes_G >> np.uint64(29)
        hashes_G += hashes_W[offset : offset + count]
    return _mixed(hashes_G)


def _mixed(hashes: Array) -> Array:
    """Every bit depends on every other (the finalizer of MurmurHash3)."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(multiplier)
    hashes ^= hashes >> np.uint64(33)
    return hashes
