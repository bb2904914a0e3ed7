"""What a command says to the person, apart from its results: on stderr, coloured on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from triax.common.showing import printable_lines


def print_error(message: object) -> None:
    """Show a mistake of the user's."""
    _print("triax: error:", "bold red", message)


def print_warning(message: object) -> None:
    """Show what may not be meant."""
    _print("triax: warning:", "bold yellow", message)


def print_note(message: object) -> None:
    """Show what happens, where it isn't a command's result."""
    _print("triax:", "bold", message)


def _print(prefix: str, style: str, message: object) -> None:
    # Soft wrap: the terminal breaks lines, so that paths can be copied whole.
    text = printable_lines(str(message))
    Console(stderr=True).print(Text.assemble((prefix, style), f" {text}"), soft_wrap=True)
