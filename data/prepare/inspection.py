"""Shards beside the tokenizer that they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triax.data.prepare.tokenizer import decode, load_tokenizer, vocabulary_size
from triax.data.read.inspection import document_tokens_at
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
