"""Prompts from a file or the standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from triax.common.errors import UserError
from triax.common.files import read_regular

_MOST_BYTES = 1 << 28


def read_prompts(path: str) -> list[str]:
    """One prompt a line: plain text, or JSON objects with a field `prompt`.

    Args:
        path: of the file; `-` for the standard input.

    Raises:
        UserError: it can't be read, holds no prompt, or a line isn't like the first.
    """
    name = "the standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:
        raise UserError(f"{name}: is closed; pipe prompts into it, or name a file of them")
    try:
        raw = sys.stdin.buffer.read() if path == "-" else read_regular(Path(path), _MOST_BYTES)
        numbered = enumerate(raw.decode("utf-8-sig").split("\n"), 1)
        lines = [(number, line) for number, line in numbered if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{name}: can't be read: {error.strerror}") from None
    if not lines:
        raise UserError(f"{name}: holds no prompt; write one in each line")
    if not lines[0][1].startswith("{"):
        return [line.rstrip("\r") for _, line in lines]
    return [_field(line, f"{name}, line {number}") for number, line in lines]


def _field(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str):
        raise UserError(
            f'{where}: expected {{"prompt": TEXT}} as in the first line, got {line[:40]}'
        )
    return prompt
