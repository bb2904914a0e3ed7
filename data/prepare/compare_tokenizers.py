"""Tokenizers on the same texts: how short, how fast, and whether all of a text comes back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.encode import encoder_of
from triax.data.prepare.text import iter_records
from triax.data.prepare.tokenizer import decode, vocabulary_size


@dataclass(frozen=True)
class Figures:
    """Of one tokenizer on one group of texts."""

    tokenizer: str
    vocab_size: int
    group: str
    """A source, or a language."""
    num_documents: int
    num_bytes: int
    """Of the texts in UTF-8."""
    num_tokens: int
    seconds: float
    """That encoding took, in one process."""
    num_lossless: int
    """Documents whose tokens give back their text."""

    @property
    def bytes_per_token(self) -> float:
        """More is shorter."""
        return self.num_bytes / max(self.num_tokens, 1)

    @property
    def megabytes_per_second(self) -> float:
        """Of text encoded."""
        return self.num_bytes / 1e6 / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"bytes_per_token": self.bytes_per_token}


def grouped_texts(
    inputs: Sequence[str], text_field: str, by: str, num_characters: int
) -> dict[str, list[str]]:
    """The first texts of each group, until it has so many characters.

    Args:
        by: `source`: each INPUT is a group; `language`: what records name as their language.

    Raises:
        UserError: an input can't be read, or there is no text.
    """
    groups: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for text in inputs:
        for record in iter_records([text], text_field, with_fields=by == "language"):
            language = record.fields.get("language") or "unknown"
            group = text if by == "source" else str(language)
            left = num_characters - sizes.get(group, 0)
            if left > 0:
                groups.setdefault(group, []).append(record.text[:left])
                sizes[group] = sizes.get(group, 0) + len(record.text[:left])
            elif by == "source":
                break
    if not groups:
        raise UserError(f"{', '.join(inputs)}: no documents, the inputs hold no text")
    return groups


def compare(tokenizers: Sequence[Path], groups: Mapping[str, Sequence[str]]) -> list[Figures]:
    """Encode all texts by all tokenizers, as `triax data prepare` does.

    Raises:
        UserError: a tokenizer is of no use.
    """
    return [
        _figures(path, group, list(texts)) for path in tokenizers for group, texts in groups.items()
    ]


def _figures(path: Path, group: str, texts: list[str]) -> Figures:
    tokens = document_tokens(path)
    encoder = encoder_of(str(path), (tokens.end,))
    began = time.perf_counter()
    found = encoder.encode(texts)
    seconds = time.perf_counter() - began
    ids = [[token for part in parts for token in part.tolist()] for parts in found]
    decoded = [decode(encoder.tokenizer, each, skip_special_tokens=False) for each in ids]
    return Figures(
        tokenizer=str(path),
        vocab_size=vocabulary_size(encoder.tokenizer),
        group=group,
        num_documents=len(texts),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=sum(map(len, ids)),
        seconds=seconds,
        num_lossless=sum(one == other for one, other in zip(decoded, texts, strict=True)),
    )
