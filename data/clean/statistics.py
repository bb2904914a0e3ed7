"""What a piece of the work counted; sums of them are the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import xxhash

from triax.data.clean.document import Document

_SAMPLES_PER_REASON = 3
_SAMPLE_CHARACTERS = 400
_SUMS = (
    *("documents_in", "documents_out", "characters_in", "characters_out"),
    *("tokens_in", "tokens_out", "changed"),
)


@dataclass
class Population:
    """Documents at one place of the cleaning."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    """Where a tokenizer is given."""
    lengths: Counter[str] = field(default_factory=Counter)
    """Documents by the number of bits of their length in characters."""
    sources: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    def add(self, document: Document) -> None:
        length = len(document.text)
        self.documents += 1
        self.characters += length
        self.tokens += document.num_tokens
        self.lengths[str(length.bit_length())] += 1
        self.sources[document.source] += 1
        self.languages[document.language or "unknown"] += 1


@dataclass
class StepCounts:
    """What one step did."""

    documents_in: int = 0
    documents_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    changed: int = 0
    """Of those kept."""
    reasons: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[list[str]]] = field(default_factory=dict)
    """By reason: hash, id and beginning of a few dropped documents, those of the smallest hashes,
    so that they don't depend on how the work was parted."""

    def add_kept(self, before: str, after: str) -> None:
        self.documents_in += 1
        self.documents_out += 1
        self.characters_in += len(before)
        self.characters_out += len(after)
        self.changed += before is not after and before != after

    def add_dropped(self, document: Document, before: str, reason: str) -> None:
        self.documents_in += 1
        self.characters_in += len(before)
        self.reasons[reason] += 1
        digest = xxhash.xxh3_64_hexdigest(document.id.encode("utf-8", "surrogatepass"))
        samples = self.samples.setdefault(reason, [])
        samples.append([digest, document.id, before[:_SAMPLE_CHARACTERS]])
        self._cut(reason)

    def merge(self, other: StepCounts) -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reasons.update(other.reasons)
        for reason, samples in other.samples.items():
            self.samples.setdefault(reason, []).extend(samples)
            self._cut(reason)

    def _cut(self, reason: str) -> None:
        self.samples[reason] = sorted(self.samples[reason])[:_SAMPLES_PER_REASON]


@dataclass
class Statistics:
    """Of one piece, or of all."""

    read: Population = field(default_factory=Population)
    written: Population = field(default_factory=Population)
    steps: dict[str, StepCounts] = field(default_factory=dict)

    def step(self, name: str) -> StepCounts:
        return self.steps.setdefault(name, StepCounts())

    def merge(self, other: Statistics) -> None:
        for mine, theirs in ((self.read, other.read), (self.written, other.written)):
            mine.documents += theirs.documents
            mine.characters += theirs.characters
            mine.tokens += theirs.tokens
            for name in ("lengths", "sources", "languages"):
                getattr(mine, name).update(getattr(theirs, name))
        for name, counts in other.steps.items():
            self.step(name).merge(counts)

    def to_json(self) -> dict[str, Any]:
        return {
            "read": _sorted(vars(self.read)),
            "written": _sorted(vars(self.written)),
            "steps": {name: _sorted(vars(counts)) for name, counts in self.steps.items()},
        }

    @staticmethod
    def from_json(record: dict[str, Any]) -> Statistics:
        statistics = Statistics(_population(record["read"]), _population(record["written"]))
        for name, counts in record["steps"].items():
            values = {**counts, "reasons": Counter(counts["reasons"])}
            statistics.steps[name] = StepCounts(**values)
        return statistics


def _population(record: dict[str, Any]) -> Population:
    counters = {name: Counter(record[name]) for name in ("lengths", "sources", "languages")}
    return Population(**{**record, **counters})


def _sorted(values: dict[str, Any]) -> dict[str, Any]:
    """With the keys of tables in order, so that equal counts are equal bytes."""
    return {
        name: dict(sorted(value.items())) if isinstance(value, dict) else value
        for name, value in values.items()
    }
