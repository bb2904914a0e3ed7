"""Standard output and error that never fail: for letters they lack, or whoever reads them."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

_PATIENCE_SECONDS = 5.0


@contextmanager
def lossy_output() -> Iterator[None]:
    """Make stdout and stderr streams that never fail while the block runs.

    A reader that has gone away (`| head`, a dead `tee` or ssh), a full disk or a letter that the
    encoding lacks costs what was to be shown, and no more; a reader that no longer reads does so
    after a few seconds, once.
    """
    _fill_gaps()
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lossy, former)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = former


@contextmanager
def no_output() -> Iterator[None]:
    """Drop what is printed to stdout while the block runs."""
    with (
        Path(os.devnull).open("w", encoding="utf-8", errors="replace") as nowhere,
        redirect_stdout(nowhere),
    ):
        yield


def show_all_text() -> None:
    """Let stdout show letters that its encoding lacks as escapes (`\\u6f22`) instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def tell_at_once(message: str) -> None:
    """Show a line on stdout, past its buffer: a signal's handler may have cut in on a print."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if raw is not None:
        with suppress(OSError, ValueError):
            raw.write(f"\n{message}\n".encode())


def _lossy(stream: TextIO) -> Any:
    """A stream in the place of this one; the same where it isn't a file of the system's."""
    if stream is None:
        return None
    try:
        stream.flush()
        raw = _LossyFile(stream)
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


class _LossyFile(io.RawIOBase):
    """Writes to a stream's descriptor what that takes; the rest is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream  # kept: it closes its descriptor when it goes
        self._descriptor = stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)
        self._patience = _PATIENCE_SECONDS

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        rest = view
        with suppress(OSError):
            # A pipe that is ready takes so many bytes without waiting.
            while rest and self._is_ready():
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        return len(view)

    def _is_ready(self) -> bool:
        """Whether the reader takes more; one that has made us wait in vain isn't waited for."""
        is_ready = bool(self._poll.poll(1000 * self._patience))
        self._patience = _PATIENCE_SECONDS if is_ready else 0.0
        return is_ready


def _fill_gaps() -> None:
    """Open what was closed before the start (`>&-`), or a checkpoint may get that number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
