"""Shards beside the tokenizer that they were made with, and documents before they are shards."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from triax.common.errors import UserError
from triax.data.prepare.text import Record, iter_records
from triax.data.prepare.tokenizer import decode, load_tokenizer, vocabulary_size
from triax.data.read.inspection import document_tokens_at, histogram
from triax.data.read.shards import Shard
from triax.data.record import load_prepared

_EXCERPT_TOKENS = 200


@dataclass(frozen=True)
class Excerpt:
    """How a document begins."""

    document: int
    num_tokens: int
    """Of the whole document."""
    text: str

    def describe(self) -> str:
        """What is shown, in words."""
        more = "" if self.num_tokens <= _EXCERPT_TOKENS else f", the first {_EXCERPT_TOKENS}"
        return f"document {self.document:,}: {self.num_tokens:,} tokens{more}"


def document_text(shards: Sequence[Shard], document: int, tokenizer: Path) -> Excerpt:
    """A document's first tokens as text, special ones too.

    Raises:
        UserError: there is no such document, or the tokenizer is of no use.
    """
    tokens, num_tokens = document_tokens_at(shards, document, _EXCERPT_TOKENS)
    text = decode(load_tokenizer(tokenizer), tokens, skip_special_tokens=False)
    return Excerpt(document, num_tokens, text)


def expected_vocab_size(prefix: str, tokenizer: Path | None) -> int | None:
    """The vocabulary's size by the tokenizer, else by the `data.json` beside the shards.

    Raises:
        UserError: the tokenizer or the file can't be read.
    """
    if tokenizer is not None:
        return vocabulary_size(load_tokenizer(tokenizer))
    data = load_prepared(Path(prefix).parent)
    return None if data is None else data.vocab_size


def prepared_from(prefix: str) -> dict[str, Any]:
    """What `data.json` says of where shards come from; empty where there is none.

    Raises:
        UserError: it can't be read.
    """
    data = load_prepared(Path(prefix).parent)
    if data is None:
        return {}
    return {"inputs": data.settings.inputs, "num_shared_with_validation": data.num_shared}


@dataclass(frozen=True)
class Documents:
    """Figures of texts."""

    num_documents: int
    num_characters: int
    histogram: dict[int, int]
    """Documents by length in characters, as `triax.data.read.inspection.histogram` has it."""
    num_duplicates: int
    """That stood there before, character for character."""
    languages: dict[str, int]
    """Documents by language, the most frequent first; empty where no record has one."""
    sources: dict[str, int]
    """Documents by the source that their records name, else by file."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "num_documents": self.num_documents,
            "num_characters": self.num_characters,
            "histogram": {str(most): count for most, count in self.histogram.items()},
            "num_duplicates": self.num_duplicates,
            "languages": self.languages,
            "sources": self.sources,
        }


def inspect_documents(text: str, text_field: str = "text") -> Documents:
    """Read all documents of an INPUT. Holds 16 bytes a document.

    Raises:
        UserError: as `iter_records`; or there is no document.
    """
    lengths, hashes = array("q"), array("Q")
    languages: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for record in iter_records([text], text_field, with_fields=True):
        lengths.append(len(record.text))
        hashes.append(xxhash.xxh3_64_intdigest(record.text.encode("utf-8", "surrogatepass")))
        languages[_named(record, "language", "unknown")] += 1
        sources[_named(record, "source", record.origin)] += 1
    if not lengths:
        raise UserError(f"{text}: no documents, it holds no text")
    counts = np.array(lengths, np.int64)
    return Documents(
        num_documents=len(counts),
        num_characters=int(counts.sum()),
        histogram=histogram(counts),
        num_duplicates=len(hashes) - len(np.unique(np.array(hashes, np.uint64))),
        languages={} if set(languages) == {"unknown"} else dict(languages.most_common()),
        sources=dict(sources.most_common()),
    )


def _named(record: Record, field: str, other: str) -> str:
    value = record.fields.get(field)
    return value if isinstance(value, str) and value else other
