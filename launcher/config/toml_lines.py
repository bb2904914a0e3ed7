"""On which line of a TOML file each key stands: `tomllib` reads values but forgets places."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

Path = tuple[str | int, ...]

_SPACE = re.compile(r"(?:\s|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' + r"'''.*?'{3,5}|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: [0-9:.Z+-]+)?")
"""A number, a boolean or a date; a date may have one space before its time."""


def locate_keys(text: str) -> dict[Path, int]:
    """The line, from 1, of every table, key and array element of a valid TOML document."""
    return _Scanner(text).scan()


class _Scanner:
    """Walks over text that `tomllib` has accepted, so it checks nothing again."""

    def __init__(self, text: str) -> None:
        # As TOML has it, and so that no line ends on a carriage return.
        self.text = text.replace("\r\n", "\n")
        self.position = 0
        self.lines: dict[Path, int] = {}
        self.num_tables: defaultdict[Path, int] = defaultdict(int)

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self.skip(_SPACE)
        while self.position < len(self.text):
            if self.accept("[["):
                name = self.resolve(self.key())
                table = (*name, self.num_tables[name])
                self.num_tables[name] += 1
                self.note_all(table)
                self.expect("]]")
            elif self.accept("["):
                table = self.resolve(self.key())
                self.note_all(table)
                self.expect("]")
            else:
                self.pair(table)
            self.skip(_SPACE)
        return self.lines

    def resolve(self, name: Path) -> Path:
        """A header's name with the number of the current element after each array of tables."""
        path: Path = ()
        for part in name[:-1]:
            path = (*path, part)
            if path in self.num_tables:
                path = (*path, self.num_tables[path] - 1)
        return (*path, name[-1])

    def pair(self, table: Path) -> None:
        start = self.position
        key = self.key()
        self.note_all((*table, *key), at=start)
        self.expect("=")
        self.value((*table, *key))

    def value(self, path: Path) -> None:
        if self.accept("["):
            index = 0
            while not self.accept("]"):
                self.note((*path, index))
                self.value((*path, index))
                index += 1
                self.accept(",")
        elif self.accept("{"):
            while not self.accept("}"):
                self.pair(path)
                self.accept(",")
        elif not self.skip(_STRING):
            self.skip(_SCALAR)

    def key(self) -> Path:
        parts: list[str] = []
        while not parts or self.accept("."):
            self.skip(_SPACE)
            if bare := self.skip(_BARE_KEY):
                parts.append(bare)
            else:
                parts.append(_unquoted(self.skip(_STRING)))
        return tuple(parts)

    def note_all(self, path: Path, at: int | None = None) -> None:
        """Note the path and the tables around it that no line before has named."""
        for depth in range(1, len(path) + 1):
            self.note(path[:depth], at)

    def note(self, path: Path, at: int | None = None) -> None:
        position = self.position if at is None else at
        self.lines.setdefault(path, self.text.count("\n", 0, position) + 1)

    def accept(self, token: str) -> bool:
        """Step over the token, and over the space before and after it, if it comes next."""
        self.skip(_SPACE)
        if not self.text.startswith(token, self.position):
            return False
        self.position += len(token)
        self.skip(_SPACE)
        return True

    def expect(self, token: str) -> None:
        accepted = self.accept(token)
        assert accepted, f"expected {token!r} at offset {self.position}"

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match[0]


def _unquoted(string: str) -> str:
    if string.startswith('"') and "\\" in string:
        return str(ast.literal_eval(string))
    return string[1:-1]
