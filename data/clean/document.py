"""A document on its way through the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from triax.data.prepare.text import Record

_OWN = ("id", "source", "url", "path", "language", "metadata")


@dataclass
class Document:
    """A text and what is known of it; steps change it in place."""

    text: str
    id: str
    """Its row's own, else `origin:number`."""
    source: str
    """Its row's own, else the INPUT that it was found by."""
    path: str
    """Its row's `url` or `path`, else its file."""
    language: str | None = None
    """ISO 639-1."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """All other fields of its row, and what steps note."""
    num_tokens: int = 0
    """Of the text, where they are counted."""

    def row(self) -> dict[str, Any]:
        """As a line of the output holds it."""
        return {
            "text": self.text,
            "id": self.id,
            "source": self.source,
            "path": self.path,
            "language": self.language,
            "metadata": self.metadata,
        }


def document_of(record: Record, source: str) -> Document:
    """A record as a document.

    Args:
        source: the INPUT that it was found by.
    """
    fields = record.fields
    part = f"+{record.part}" if record.part else ""
    inner = fields.get("metadata")
    metadata = dict(inner) if isinstance(inner, dict) else {}
    metadata.update({name: value for name, value in fields.items() if name not in _OWN})
    if inner is not None and not isinstance(inner, dict):
        metadata["metadata"] = inner
    return Document(
        text=record.text,
        id=_text(fields, "id", _valid(f"{record.origin}:{record.number}")) + part,
        source=_text(fields, "source", _valid(source)),
        path=_text(fields, "url", "") or _text(fields, "path", _valid(record.origin)),
        language=_text(fields, "language", "") or None,
        metadata=metadata,
    )


def _text(fields: dict[str, Any], name: str, other: str) -> str:
    value = fields.get(name)
    if value is None or value == "" or isinstance(value, dict | list):
        return other
    return _valid(str(value))


def _valid(text: str) -> str:
    """Without lone surrogates, which a path's bytes can be."""
    return text.encode("utf-8", "backslashreplace").decode()
