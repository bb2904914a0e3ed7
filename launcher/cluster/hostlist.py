"""SLURM's short notations for nodes and tasks, expanded. Imports no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from triax.common.errors import UserError

_MOST_NODES = 100_000
_NUMBERS = re.compile(r"(?P<first>\d{1,9})(?:-(?P<last>\d{1,9}))?", re.ASCII)
_REPEATED = re.compile(r"(?P<count>\d{1,9})(?:\(x(?P<times>\d{1,6})\))?", re.ASCII)
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")


def expand_nodes(text: str) -> list[str]:
    """The names in a node list: `gpu[08-10,12],login` is gpu08, gpu09, gpu10, gpu12, login.

    Raises:
        UserError: it isn't a node list.
    """
    names: list[str] = []
    for item in _split_outside_brackets(text):
        parts = [
            list(_expand_numbers(numbers, text)) if numbers else [plain]
            for numbers, plain in _PART.findall(item)
        ]
        written = sum(len(part.group()) for part in _PART.finditer(item))
        if not parts or written != len(item):
            raise _no_list(text)
        names += ("".join(pieces) for pieces in itertools.product(*parts))
        if len(names) > _MOST_NODES:
            raise _no_list(text)
    return names


def expand_counts(text: str) -> list[int]:
    """The numbers in a list of tasks per node: `2(x3),1` is 2, 2, 2, 1.

    Raises:
        UserError: it isn't such a list.
    """
    counts: list[int] = []
    for item in text.split(","):
        match = _REPEATED.fullmatch(item)
        if match is None or int(match["times"] or 1) > _MOST_NODES:
            raise UserError(f"{text!r} is no list of tasks per node such as `4(x2),3`")
        counts += [int(match["count"])] * int(match["times"] or 1)
    return counts


def _split_outside_brackets(text: str) -> list[str]:
    items, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    return items


def _expand_numbers(numbers: str, text: str) -> Iterator[str]:
    for item in numbers.split(","):
        match = _NUMBERS.fullmatch(item)
        if match is None:
            raise _no_list(text)
        first, last = match["first"], match["last"] or match["first"]
        if not int(first) <= int(last) < int(first) + _MOST_NODES:
            raise _no_list(text)
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}d}"


def _no_list(text: str) -> UserError:
    return UserError(f"{text!r} is no list of nodes such as `node[1-3,7]`")
