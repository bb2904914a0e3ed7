"""What is wrong with a config: one problem, many problems, and how they are shown."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from triax.common.errors import UserError
from triax.common.showing import printable

WIDTH = 80
_SHORTEST_PART = 3
"""A name that was cut to less than this may stand for anything."""


@dataclass(frozen=True)
class Problem:
    """One thing to mend in a config."""

    path: str
    """Config path, such as `batch.micro_batch_size`; empty for the config as a whole."""
    message: str
    """What was given, what was expected and what to do."""
    line: int | None = None
    """Line of the config file, from 1."""
    origin: str = ""
    """Where the value is from when it's not from a line of the file: `command line`."""

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line is not None else self.origin
        head = ": ".join(part for part in (where, self.path) if part)
        return f"{head}: {self.message}" if head else self.message


class ConfigError(UserError):
    """Everything that is wrong with a config, at once."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = sorted(problems, key=lambda problem: (problem.line or 0, problem.path))
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source}: {count}\n{listed(self.problems)}")


def listed(items: Iterable[object]) -> str:
    """The items as an indented list that fits a terminal of 80 columns."""
    return "\n".join(
        textwrap.fill(
            printable(str(item)),
            WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )


def likely_not_meant(source: str, problems: Sequence[Problem]) -> str:
    """What a warning says of problems that don't keep a run from starting."""
    return f"{source}: this is likely not meant\n{listed(problems)}"


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """`; did you mean x?` with the nearest of the valid names, or nothing when none is near."""
    names = list(valid)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if not near and len(given) >= _SHORTEST_PART:
        near = [name for name in names if given in name]
    return f"; did you mean {near[0]}?" if near else ""
