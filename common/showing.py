"""Text from files and options as a terminal may be given it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with what a terminal couldn't show, or would obey, escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, with the text's lines left as they are."""
    return "\n".join(map(printable, text.split("\n")))
