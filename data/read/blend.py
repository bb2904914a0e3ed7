"""A run's phases, and which of the given sources goes on as which of the recorded ones.

In the phases a source goes by a key: the digest of its contents, so that the order of its windows
depends on nothing else. Records of earlier versions have names made from paths there; such a
name stays the key of what it stood for, since the order was drawn with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from triax.common.errors import UserError
from triax.common.paths import same_path
from triax.data.read.identity import Identity
from triax.data.read.plan import PlannedPhase
from triax.data.read.sampler import Phase, source_names


@dataclass(frozen=True)
class Blend:
    """All phases, those to come too, which read the given sources."""

    phases: tuple[Phase, ...]
    sources: Mapping[str, Identity]
    """By key: the sources of all phases, without those that an earlier version stopped reading."""
    keys: tuple[str, ...]
    """Of the given sources, in the order given."""
    is_new: bool = False
    """Whether a phase begins where the run goes on."""
    notes: tuple[str, ...] = ()
    """What was matched with what, in lines for the user."""

    @staticmethod
    def begin(given: Sequence[Identity], plan: Sequence[PlannedPhase]) -> Blend:
        """The blend of a run that begins."""
        keys = _match(_Past((), {}, {}), given)
        phases = tuple(phase.keyed(keys) for phase in plan)
        return Blend(phases, dict(zip(keys, given, strict=True)), keys)

    @staticmethod
    def resume(
        record: Mapping[str, Any],
        cursor: int,
        given: Sequence[Identity],
        plan: Sequence[PlannedPhase],
    ) -> Blend:
        """The blend of a run that goes on from a checkpoint's record at sample `cursor`.

        Sources with the contents of recorded ones go on as these, wherever they lie. What has been
        read stays as it was; from here on it goes by the plan, and if that reads something else
        here than the record does, a new phase begins.

        Raises:
            UserError: a source has some of a recorded one's shards, but not just these.
        """
        past = _Past.of(record)
        keys = _match(past, given)
        notes = _notes(past, keys, given)
        planned = tuple(phase.keyed(keys) for phase in plan)
        now = active(planned, cursor)
        is_new = not active(past.phases, cursor).reads_like(now)
        if is_new:
            # Two phases can't begin at one sample: an unused one gives way.
            begun = [phase for phase in past.phases if phase.start_sample < cursor]
            begun.append(replace(now, start_sample=cursor))
            notes.append(f"a new phase of the blend begins at sample {cursor:,}")
        else:
            begun = [phase for phase in past.phases if phase.start_sample <= cursor]
        to_come = (phase for phase in planned if phase.start_sample > cursor)
        phases = (*begun, *(_as_recorded(phase, past.phases) for phase in to_come))
        known = {**past.known, **dict(zip(keys, given, strict=True))}
        used = {key for phase in phases for key, _ in phase.weights}
        sources = {key: source for key, source in known.items() if key in used}
        return Blend(phases, sources, keys, is_new, tuple(notes))

    def differs_from(self, record: Mapping[str, Any], sample: int) -> bool:
        """Whether a record's run reads a sample in another phase."""
        recorded = tuple(Phase.from_json(phase) for phase in record["phases"])
        return active(recorded, sample) != active(self.phases, sample)

    def num_windows(self) -> dict[str, int]:
        """Windows of each source that is known, by key."""
        return {key: source.num_windows for key, source in self.sources.items()}

    def to_json(self) -> dict[str, Any]:
        """The part of a checkpoint's record that `resume` reads, beside the config."""
        return {
            "phases": [phase.to_json() for phase in self.phases],
            "sources": {key: source.to_json() for key, source in self.sources.items()},
        }


def active(phases: Sequence[Phase], sample: int) -> Phase:
    """The phase that reads a sample."""
    return [phase for phase in phases if phase.start_sample <= sample][-1]


def _as_recorded(phase: Phase, recorded: Sequence[Phase]) -> Phase:
    """The recorded phase that this one is with its sources listed in another order, or itself.

    The order decides the samples' order, and so it stays the one that the run began with.
    """
    same_start = (other for other in recorded if other.start_sample == phase.start_sample)
    return next((other for other in same_start if other.reads_like(phase)), phase)


@dataclass(frozen=True)
class _Past:
    """What a record says of the blend."""

    phases: tuple[Phase, ...]
    known: Mapping[str, Identity]
    unknown: Mapping[str, str | None]
    """Names that an earlier version recorded alone: the path that its config then had."""

    @staticmethod
    def of(record: Mapping[str, Any]) -> _Past:
        phases = tuple(Phase.from_json(phase) for phase in record["phases"])
        known = {key: Identity.from_json(value) for key, value in record.get("sources", {}).items()}
        sources = record.get("config", {}).get("data", {}).get("sources", [])
        paths = [source["path"] for source in sources]
        path_of = dict(zip(source_names(paths), paths, strict=True))
        # Those read last come first, should several fit.
        keys = dict.fromkeys(key for phase in reversed(phases) for key, _ in phase.weights)
        return _Past(phases, known, {key: path_of.get(key) for key in keys if key not in known})

    def label(self, key: str) -> str:
        """What a source is called to the user."""
        return self.known[key].path if key in self.known else self.unknown[key] or key


_Fits = Callable[[_Past, str, Identity, str], bool]
"""Whether a given source, with the name that earlier versions gave it, is the one of a key."""


def _same_contents(past: _Past, key: str, source: Identity, _name: str) -> bool:
    return key in past.known and past.known[key].shards == source.shards


def _same_contents_and_place(past: _Past, key: str, source: Identity, name: str) -> bool:
    return _same_contents(past, key, source, name) and same_path(past.label(key), source.path)


def _same_place(past: _Past, key: str, source: Identity, _name: str) -> bool:
    path = past.unknown.get(key)
    return path is not None and same_path(path, source.path)


def _same_name(past: _Past, key: str, _source: Identity, name: str) -> bool:
    return key in past.unknown and key == name


_RULES: tuple[_Fits, ...] = (_same_contents_and_place, _same_contents, _same_place, _same_name)
"""Tried for all sources one after another: the surest first."""


def _match(past: _Past, given: Sequence[Identity]) -> tuple[str, ...]:
    """The key of each given source: a recorded one, or its own."""
    names = source_names([source.path for source in given])
    keys: dict[int, str] = {}
    for fits in _RULES:
        for number, (source, name) in enumerate(zip(given, names, strict=True)):
            free = (key for key in (*past.known, *past.unknown) if key not in keys.values())
            fitting = (key for key in free if fits(past, key, source, name))
            if number not in keys and (key := next(fitting, None)) is not None:
                keys[number] = key
    for number, source in enumerate(given):
        if number not in keys:
            _refuse_parts(past, source)
            taken = {*past.known, *past.unknown, *keys.values()}
            keys[number] = next(key for key in _own_keys(source) if key not in taken)
    return tuple(keys[number] for number in range(len(given)))


def _own_keys(source: Identity) -> Iterator[str]:
    """The source's own key, and others for further sources of the same contents."""
    yield source.key
    yield from (f"{source.key}-{number}" for number in count(2))


def _refuse_parts(past: _Past, source: Identity) -> None:
    for recorded in past.known.values():
        shared = len(set(source.shards) & set(recorded.shards))
        if shared:
            raise UserError(
                f"data.sources: {source.path} has {len(source.shards):,} shards, of which "
                f"{shared:,} are among the {len(recorded.shards):,} that this run knows as "
                f"{recorded.path}; its windows would be counted anew, and those read already "
                "would come again. Keep the former series as it was, and give the other shards "
                "a prefix of their own, as a further source"
            )


def _notes(past: _Past, keys: Sequence[str], given: Sequence[Identity]) -> list[str]:
    notes, num_same = [], 0
    for key, source in zip(keys, given, strict=True):
        if key not in past.known and key not in past.unknown:
            places = [recorded.path for recorded in past.known.values()]
            is_other = any(same_path(place, source.path) for place in places)
            other = "other contents than before, " if is_other else ""
            notes.append(f"{source.path}: {other}new to this run")
        elif same_path(past.label(key), source.path):
            num_same += 1
            notes.append(f"{source.path}: as before")
        elif key in past.known:
            notes.append(f"{source.path}: the contents of {past.label(key)}, goes on as that")
        else:
            notes.append(
                f"{source.path}: taken for {past.label(key)} by its name, which is all that an "
                "earlier version recorded"
            )
    last = [key for key, _ in past.phases[-1].weights]
    notes += [f"{past.label(key)}: no longer read" for key in last if key not in keys]
    return notes if num_same < len(notes) else ["all sources are as before"]
