"""Sample number -> (source, epoch, window), by arithmetic alone.

Samples come in blocks of `BLOCK_SIZE`. Each source has an exact quota of every block, and a
seeded permutation orders the samples inside it. The k-th sample of a source, counted over the
whole run, is window `permutation(k % num_windows)` of epoch `k // num_windows`, with another
permutation each epoch: every window comes exactly once an epoch. So nothing is stored, and any
sample number is found in the same short time.

A run may change its blend: a phase begins at any sample number, with blocks of its own, and
each source goes on from the samples that earlier phases took of it. A source that has been read as
often as it may leaves its phase there, and the rest of it goes by the same rules. The list of
phases and one sample number are the whole state. Imports no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import count
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
    num_pieces: int = 1
    """Sequences that each sample is cut into."""
    max_epochs: tuple[tuple[str, float], ...] = ()
    """How often a source may be read, over all phases; none that isn't named has a limit."""

    def reads_like(self, other: Phase) -> bool:
        """Whether both read the same, wherever they begin and however they list their sources."""
        return self._unordered() == other._unordered()

    def _unordered(self) -> tuple[object, ...]:
        return dict(self.weights), self.num_pieces, dict(self.max_epochs)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint's record."""
        value: dict[str, Any] = {
            "start_sample": self.start_sample,
            "weights": dict(self.weights),
        }
        if self.num_pieces > 1:
            value["num_pieces"] = self.num_pieces
        if self.max_epochs:
            value["max_epochs"] = dict(self.max_epochs)
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Phase:
        """The inverse of `to_json`; the order of the sources is kept, for it decides the order
        of the samples."""
        return Phase(
            value["start_sample"],
            tuple(value["weights"].items()),
            value.get("num_pieces", 1),
            tuple(value.get("max_epochs", {}).items()),
        )


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
    """A phase, or what is left of one without the sources that are used up, ready for
    arithmetic."""

    start_sample: int
    weights: tuple[tuple[str, float], ...]
    num_pieces: int
    key_parts: tuple[int | str, ...]
    consumed: Counter[str]
    """Samples of each source before this."""
    names: tuple[str, ...] = field(init=False)
    quotas: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(name for name, _ in self.weights))
        object.__setattr__(self, "quotas", block_quotas(self.weights))

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

    def first_with(self, name: str, num_samples: int) -> int:
        """Before which sample so many of a source have been read, if this went on for ever."""
        number = num_samples - self.consumed[name]
        if number <= 0:
            return self.start_sample
        source = self.names.index(name)
        block, rank = divmod(number - 1, self.quotas[source])
        sources, ranks = self._order(block)
        offset = int(np.flatnonzero((sources == source) & (ranks == rank))[0])
        return self.start_sample + block * BLOCK_SIZE + offset + 1

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
            UserError: a weight is too small, the last phase names an unknown source, or all
                sources of a phase are used up in it, and another is to follow.
        """
        starts = [phase.start_sample for phase in phases]
        assert starts and starts[0] == 0 and starts == sorted(starts), starts
        self._seed = seed
        self._num_windows = dict(num_windows)
        self._blends: list[_Blend] = []
        self.used_up: dict[str, int] = {}
        """Before which sample a source has been read as often as it may, where that comes."""
        self.end: int | None = None
        """Before which sample all sources of the last phase are used up; None: never."""
        for number, (phase, end) in enumerate(zip(phases, [*starts[1:], None], strict=True)):
            self._add(number, phase, end)
        for name, _ in phases[-1].weights:
            self._windows_of(name)

    def _add(self, number: int, phase: Phase, end: int | None) -> None:
        """Append a phase, a blend for each set of sources that are not used up yet."""
        assert len(dict(phase.weights)) == len(phase.weights), phase
        weights, start = phase.weights, phase.start_sample
        limits = {name: int(most * self._windows_of(name)) for name, most in phase.max_epochs}
        consumed = self.consumed(start) if self._blends else Counter[str]()
        for part in count():
            key_parts: tuple[int | str, ...] = (self._seed, "block", number)
            key_parts += (part,) if part else ()
            blend = _Blend(start, weights, phase.num_pieces, key_parts, consumed)
            limited = [name for name, _ in weights if name in limits]
            ends = {name: blend.first_with(name, limits[name]) for name in limited}
            next_start = min(ends.values(), default=None)
            if next_start is None or (end is not None and next_start >= end):
                self._blends.append(blend)
                return
            if next_start > start:
                self._blends.append(blend)
                consumed = blend.consumed_before(next_start)
            start = next_start
            gone = {name for name, at in ends.items() if at == next_start}
            # Not anew those that an earlier phase has used up.
            late = {name for name in gone if start > phase.start_sample}
            self.used_up |= dict.fromkeys(late | (gone - self.used_up.keys()), start)
            weights = tuple((name, weight) for name, weight in weights if name not in gone)
            if not weights:
                self._end_at(start, end)
                return

    def _end_at(self, sample: int, phase_end: int | None) -> None:
        """All sources of a phase are used up before this sample."""
        if phase_end is not None or not self._blends:
            raise _used_up(sample)
        self.end = sample

    def locate(self, sample: int) -> Location:
        """Where a sample is read, in a time that depends on no number.

        Raises:
            UserError: the sample is from an earlier phase's source that is no longer given, or all
                sources are used up before it.
        """
        if self.end is not None and sample >= self.end:
            raise _used_up(self.end)
        name, number = self._blend_at(sample).locate(sample)
        num_windows = self._windows_of(name)
        epoch, rank = divmod(number, num_windows)
        return Location(name, epoch, _epoch_order(self._seed, name, epoch, num_windows)(rank))

    def consumed(self, num_samples: int) -> Counter[str]:
        """How many of the first `num_samples` samples come from each source."""
        num_samples = num_samples if self.end is None else min(num_samples, self.end)
        return self._blend_at(num_samples).consumed_before(num_samples)

    def num_pieces(self, sample: int) -> int:
        """Sequences that a sample is cut into."""
        return self._blend_at(sample).num_pieces

    def changes_between(self, sample: int, other: int) -> bool:
        """Whether another blend, or another length of sequences, begins on the way."""
        return self._number(sample) != self._number(other)

    def _blend_at(self, sample: int) -> _Blend:
        return self._blends[self._number(sample)]

    def _number(self, sample: int) -> int:
        assert sample >= 0, sample
        return bisect_right(self._blends, sample, key=lambda blend: blend.start_sample) - 1

    def _windows_of(self, name: str) -> int:
        if name not in self._num_windows:
            known = ", ".join(self._num_windows)
            raise UserError(
                f"data.sources: the run reads a source named {name}, which is not among "
                f"those given ({known}); add it again"
            )
        return self._num_windows[name]


def _used_up(sample: int) -> UserError:
    return UserError(
        f"data.sources: before sample {sample:,} all sources have been read as often as their "
        "max_epochs says; raise it, add data, or lower budget.tokens"
    )
