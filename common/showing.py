"""Text from files and options as a terminal may be given it."""

from __future__ import annotations

import unicodedata
from typing import TextIO

_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that show what follows in another order."""


def printable(text: str) -> str:
    """The text with what a terminal couldn't show, or would obey, escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, with the text's lines left as they are."""
    return "\n".join(map(printable, text.split("\n")))


def text_for(stream: TextIO | None, text: str) -> str:
    """What documents and models write, for a stream: as it is, but a terminal gets it `tamed`.
    A closed one is None."""
    return tamed(text) if stream is not None and stream.isatty() else text


def tamed(text: str) -> str:
    """The text with what a terminal would obey escaped; lines, tabs and all scripts stay."""
    return "".join(
        char.encode("unicode_escape").decode("ascii") if _is_obeyed(char) else char for char in text
    )


def _is_obeyed(char: str) -> bool:
    if char in "\n\t":
        return False
    return char in _DIRECTIONS or unicodedata.category(char) in ("Cc", "Cs")
