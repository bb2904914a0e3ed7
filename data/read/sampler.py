"""Sample number -> (source, epoch, window), by arithmetic alone.

Samples come in blocks of `BLOCK_SIZE`. Each source has an exact quota of every block, and a
seeded permutation orders the samples inside it. The k-th sample of a source, counted over the
whole run, is window `permutation(k % num_windows)` of epoch `k // num_windows`, with another
permutation each epoch: every window comes exactly once an epoch. So nothing is stored, and any
sample number is found in the same short time.

A run may change its blend: a phase begins at any sample number, with blocks of its own, and
each source goes on from the samples that earlier phases took of it. The list of phases and one
sample number are the whole state. Imports no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triax.common.errors import UserError
from triax.data.read.permutation import Permutation, derive_key

BLOCK_SIZE = 10_000
"""Samples in a block: shares with up to four decimals are exact."""


@dataclass(frozen=True)
class Phase:
    """A blend of sources, from a sample number on."""

    start_sample: int
    weights: tuple[tuple[str, float], ...]
    """Each source's name and its share, relative to the other weights."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint's record."""
        return {"start_sample": self.start_sample, "weights": dict(self.weights)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Phase:
        """The inverse of `to_json`; the order of the sources is kept, for it decides the order
        of the samples."""
        return Phase(value["start_sample"], tuple(value["weights"].items()))


@dataclass(frozen=True)
class Location:
    """Where a sample is read."""

    source: str
    epoch: int
    """How often the source was used up before."""
    window: int
    """Index of the window in its source."""


def source_names(paths: Sequence[str]) -> list[str]:
    """A name for each path: the fewest last components that no other path ends with.

    `/data/web/train` and `/data/code/train` become `web/train` and `code/train`; a single source
    is just `train`. Names stay when the folder above is moved. (They change when a source is
    added that ends like another: only then does a name not suffice.)

    Raises:
        UserError: two paths are the same.
    """
    parts = [PurePath(path).parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, part in zip(paths, parts, strict=True) if parts.count(part) > 1)
        raise UserError(f"data.sources names {twice} twice: give it once, with its whole weight")
    return [_shortest_name(own, [other for other in parts if other != own]) for own in parts]


def _shortest_name(own: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    for length in range(1, len(own)):
        suffix = own[-length:]
        if all(other[-length:] != suffix for other in others):
            return str(PurePath(*suffix))
    return str(PurePath(*own))


def block_quotas(weights: Sequence[tuple[str, float]]) -> tuple[int, ...]:
    """How many of a block's `BLOCK_SIZE` samples come from each source.

    Rounded by largest remainder (ties: the earlier source first) in exact arithmetic, so shares
    of whole ten-thousandths come out as they are written.

    Raises:
        UserError: a source's share rounds to zero.
    """
    exact = [Fraction(weight) for _, weight in weights]
    shares = [BLOCK_SIZE * weight / sum(exact) for weight in exact]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - shares[i])
    for source in by_remainder[: BLOCK_SIZE - sum(quotas)]:
        quotas[source] += 1
    for (name, weight), quota in zip(weights, quotas, strict=True):
        if quota <= 0:
            raise UserError(
                f"data.sources: {name} has weight {weight:g}, less than one sample in "
                f"{BLOCK_SIZE:,} of the blend; raise its weight or leave it out"
            )
    return tuple(quotas)


@lru_cache(maxsize=8)
def _block_order(key: int, quotas: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each sample of a block: which source it is from, and how many came from it before.

    The second is what makes a phase end anywhere without gaps: whatever part of a block was
    used, each source has given its first so many samples. Returns: two of (BLOCK_SIZE,) int64.
    """
    slots = np.repeat(np.arange(len(quotas)), quotas)
    sources = slots[Permutation(BLOCK_SIZE, key).table()]
    ranks = np.empty(BLOCK_SIZE, np.int64)
    for source, quota in enumerate(quotas):
        ranks[sources == source] = np.arange(quota)
    return sources, ranks


@lru_cache(maxsize=256)
def _epoch_order(seed: int, source: str, epoch: int, num_windows: int) -> Permutation:
    return Permutation(num_windows, derive_key(seed, "epoch", source, epoch))


@dataclass(frozen=True)
class _Blend:
    """A phase, ready for arithmetic."""

    start_sample: int
    names: tuple[str, ...]
    quotas: tuple[int, ...]
    key_parts: tuple[int | str, ...]
    consumed: Counter[str]
    """Samples of each source in all earlier phases."""

    def locate(self, sample: int) -> tuple[str, int]:
        """The source of a sample of this phase, and that source's running number."""
        block, offset = divmod(sample - self.start_sample, BLOCK_SIZE)
        sources, ranks = self._order(block)
        source = int(sources[offset])
        name = self.names[source]
        return name, self.consumed[name] + block * self.quotas[source] + int(ranks[offset])

    def consumed_before(self, sample: int) -> Counter[str]:
        """Samples of each source before `sample`, earlier phases included."""
        blocks, rest = divmod(sample - self.start_sample, BLOCK_SIZE)
        sources, _ = self._order(blocks)
        partial = np.bincount(sources[:rest], minlength=len(self.names)).tolist()
        own = {
            name: blocks * quota + count
            for name, quota, count in zip(self.names, self.quotas, partial, strict=True)
        }
        return self.consumed + Counter(own)

    def _order(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _block_order(derive_key(*self.key_parts, block), self.quotas)


class Sampler:
    """Finds any sample of a run; immutable, and the same on every rank."""

    def __init__(self, seed: int, phases: Sequence[Phase], num_windows: Mapping[str, int]) -> None:
        """Check the phases and count what each of them consumes.

        Args:
            seed: decides every order.
            phases: by ascending start, the first from sample 0.
            num_windows: windows in each source, by name.

        Raises:
            UserError: a weight is too small, or the last phase names an unknown source.
        """
        starts = [phase.start_sample for phase in phases]
        assert starts and starts[0] == 0 and starts == sorted(starts), starts
        self._seed = seed
        self._num_windows = dict(num_windows)
        self._blends: list[_Blend] = []
        for number, phase in enumerate(phases):
            names = tuple(name for name, _ in phase.weights)
            assert len(set(names)) == len(names), names
            blend = _Blend(
                phase.start_sample,
                names,
                quotas=block_quotas(phase.weights),
                key_parts=(seed, "block", number),
                consumed=self.consumed(phase.start_sample) if number else Counter(),
            )
            self._blends.append(blend)
        for name in self._blends[-1].names:
            self._windows_of(name)

    def locate(self, sample: int) -> Location:
        """Where a sample is read, in a time that depends on no number.

        Raises:
            UserError: the sample is from an earlier phase's source that is no longer given.
        """
        name, number = self._blend_at(sample).locate(sample)
        num_windows = self._windows_of(name)
        epoch, rank = divmod(number, num_windows)
        return Location(name, epoch, _epoch_order(self._seed, name, epoch, num_windows)(rank))

    def consumed(self, num_samples: int) -> Counter[str]:
        """How many of the first `num_samples` samples come from each source."""
        return self._blend_at(num_samples).consumed_before(num_samples)

    def _blend_at(self, sample: int) -> _Blend:
        assert sample >= 0, sample
        return self._blends[bisect_right(self._blends, sample, key=lambda b: b.start_sample) - 1]

    def _windows_of(self, name: str) -> int:
        if name not in self._num_windows:
            known = ", ".join(self._num_windows)
            raise UserError(
                f"data.sources: the run reads a source named {name}, which is not among "
                f"those given ({known}); add it again"
            )
        return self._num_windows[name]
