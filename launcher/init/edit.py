"""Change values of a TOML file and keep its comments, as no library here does.

For files whose tables are written `[a.b]`, whose keys are bare and whose values stand on one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def set_value(text: str, table: str, key: str, value: Any) -> str:
    """Give a key another value, or add it to its table's end, which is made if it is missing."""
    line = f"{key} = {literal(value)}"
    lines = text.splitlines()
    begin, end = _table(lines, table)
    if begin is None:
        return f"{text.rstrip()}\n\n[{table}]\n{line}\n"
    for number in range(begin + 1, end):
        if re.match(rf"{re.escape(key)}\s*=", lines[number]):
            lines[number] = line
            break
    else:
        lines.insert(end, line)
    return "\n".join(lines) + "\n"


def remove_key(text: str, table: str, key: str) -> str:
    """Without a key."""
    lines = text.splitlines()
    begin, end = _table(lines, table)
    if begin is not None:
        lines[begin:end] = [
            line for line in lines[begin:end] if not re.match(rf"{re.escape(key)}\s*=", line)
        ]
    return "\n".join(lines) + "\n"


def replace_table(text: str, table: str, lines_of_it: str) -> str:
    """Another table, or none, in the place of one that is there; comments above it stay."""
    lines = text.splitlines()
    begin, end = _table(lines, table)
    assert begin is not None, table
    lines[begin:end] = lines_of_it.splitlines()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")


def literal(value: Any) -> str:
    """A value as TOML has it on one line. Texts, numbers and truths are JSON's."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {literal(each)}' for name, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(lines: list[str], name: str) -> tuple[int | None, int]:
    """The line of a table's header, and the line behind its last key."""
    headers = [number for number, line in enumerate(lines) if line.startswith("[")]
    begin = next((number for number in headers if lines[number].strip() == f"[{name}]"), None)
    if begin is None:
        return None, 0
    end = next((number for number in headers if number > begin), len(lines))
    while end > begin + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return begin, end
