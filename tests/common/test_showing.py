"""What a terminal is given of text that others wrote."""

from __future__ import annotations

import io

import pytest

from triax.common.showing import printable, tamed, text_for


class Terminal(io.StringIO):
    """One that says so."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_terminal_obeys_no_text(text: str, shown: str) -> None:
    assert text_for(Terminal(), text) == tamed(text) == shown
    # A file or a pipe gets what was written.
    assert text_for(io.StringIO(), text) == text
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["def f():\n\treturn 1\n", "a\u3000b\u00a0c é 漢", "👩\u200d🚀"])
def test_ordinary_text_stays(text: str) -> None:
    assert text_for(Terminal(), text) == text
