"""Seeded permutations of range(size) that need no memory: any element is found by arithmetic.

A Feistel network (Luby and Rackoff 1988) on a mixed radix (Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"): an index is written as two digits below `num_rows` and `num_columns`,
both close to sqrt(size), and each round adds a keyed hash of one digit to the other. The grid of
digits is larger than `size` by less than one row; an index that lands in the excess is sent
through the network again until it lands inside (cycle walking), which keeps it a bijection.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 6
_NUM_ROUNDS_OF_FIVE = 16
"""Of 3 x 2 digits one is left out, and six rounds prefer some images by a tenth."""
_MASK = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, made odd: the stride of SplitMix64's state."""


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from integers and strings; different parts give unrelated keys.

    The parts are hashed as a JSON list, so 1 differs from "1", and ("ab", "c") from ("a", "bc").
    The same on every machine and Python version, unlike `hash`.
    """
    return int.from_bytes(blake2b(json.dumps(parts).encode(), digest_size=8).digest(), "little")


def mix64(value: int) -> int:
    """SplitMix64's finaliser, a bijection on 64-bit integers whose output bits all depend on all
    input bits.

    Constants and shifts: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators" (Stafford's variant 13).
    """
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Permutation:
    """A bijection on range(size) chosen by `key`, for sizes from 1 to 2^62.

    Statistically well mixed, for shuffling; it protects no secrets.
    """

    def __init__(self, size: int, key: int) -> None:
        assert 1 <= size <= 2**62, size
        self.size = size
        self._num_rows = isqrt(size - 1) + 1
        self._num_columns = -(-size // self._num_rows)
        num_rounds = _NUM_ROUNDS_OF_FIVE if size == 5 else _NUM_ROUNDS
        self._round_keys = [mix64((key + i * _GOLDEN_GAMMA) & _MASK) for i in range(num_rounds)]

    def __call__(self, index: int) -> int:
        """Where `index`, in range(size), is sent."""
        assert 0 <= index < self.size, (index, self.size)
        index = self._encrypt(index)
        while index >= self.size:
            index = self._encrypt(index)
        return index

    def table(self) -> NDArray[np.int64]:
        """All images at once, for a size that fits in memory: `table()[i] == self(i)`.

        Returns: (size,) int64.
        """
        indices: Any = np.arange(self.size, dtype=np.uint64)
        images: Any = self._encrypt(indices)
        while (outside := images >= self.size).any():
            images[outside] = self._encrypt(images[outside])
        result: NDArray[np.int64] = images.astype(np.int64)
        return result

    def _encrypt(self, index: int) -> int:
        # Also takes an array of uint64 (see `table`): nothing here may pass 2^64 unmasked.
        row, column = index // self._num_columns, index % self._num_columns
        for number, key in enumerate(self._round_keys):
            if number % 2 == 0:
                row = (row + mix64(column ^ key) % self._num_rows) % self._num_rows
            else:
                column = (column + mix64(row ^ key) % self._num_columns) % self._num_columns
        return row * self._num_columns + column
