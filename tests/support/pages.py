"""The documentation's pages, and the commands that stand in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "examples" / "README.md"])
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
_NAME = r"[A-Z_]{4,}"
"""Words that stand for something, such as RECIPE."""


class Command(NamedTuple):
    """A command of a page, such as `triax check run.toml`."""

    page: str
    """From the repository's root."""
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands(page: Path) -> Iterator[Command]:
    """What a page's code blocks say to type, `triax` first."""
    name = str(page.relative_to(ROOT))
    text = page.read_text(encoding="utf-8")
    blocks = [each[3] for each in _FENCE.finditer(text) if each[2] in ("", "sh", "bash")]
    rest = _FENCE.sub("", text)
    blocks += ["\n".join(line for line in rest.splitlines() if line.startswith("    "))]
    for block in blocks:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in line.split("&&"):
                if part.strip().startswith("triax "):
                    words = tuple(shlex.split(part, comments=True))
                    if not any(re.fullmatch(_NAME, word) for word in words):
                        yield Command(name, words)
