"""Files of JSON that a run writes for itself: lines appended whole, read in any state.

A full disk, a crash and a curious editor leave half lines, bytes that are no text, and numbers
that nobody wrote. None of it may stop a run: what is no JSON object is left out, and counted.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from triax.common.files import open_own

_LONGEST = 1 << 24
"""Bytes of a line, or of a file that is one object; ours are far shorter."""


class Line(NamedTuple):
    """One line of a file."""

    text: bytes
    """Without its line break."""
    row: dict[str, Any] | None
    """The object that it holds; None if it holds none."""


def append_lines(path: Path, text: str) -> None:
    """Add a line, or several with line breaks between them, whole or not at all.

    A half line that a killed process has left at the end stays a line of its own.

    Raises:
        OSError: the file system doesn't take it, or it is no regular file.
    """
    descriptor = open_own(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        rest = ("\n" if is_torn else "").encode() + text.encode() + b"\n"
        try:
            while rest:  # one write, unless the disk is full: the next one then says so
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that isn't empty; none if there is no such file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    try:
        file = _open(path)
    except FileNotFoundError:
        return
    with file:
        while text := file.readline(_LONGEST):
            text = text.rstrip(b"\r\n")
            if text:
                yield Line(text, parse_object(text))


def read_object(path: Path) -> dict[str, Any] | None:
    """The object that a file holds; None if it isn't there, can't be read or holds none."""
    try:
        with _open(path) as file:
            return parse_object(file.read(_LONGEST))
    except OSError:
        return None


def parse_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object in the text, with None for numbers that aren't finite; None if it is none."""
    try:
        value = json.loads(text.decode(), parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _open(path: Path) -> BinaryIO:
    """The file to read, unless reading it might wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
