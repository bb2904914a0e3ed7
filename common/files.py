"""Files without surprises: written whole or not at all, asked for without exceptions."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from triax.common.errors import UserError


@contextmanager
def exclusive(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder for one process; the lock ends with the process, however that ends.

    Args:
        refusal: what the user is told where another process holds it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    path = folder / ".lock"
    with write_errors(path):
        descriptor = open_own(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError:
            pass  # some cluster file systems have no locks: go on without one
        yield
    finally:
        os.close(descriptor)


def open_own(path: Path, flags: int) -> int:
    """Open a file of a well-known name, or make it, and return its descriptor.

    Such a name may stand there already in a folder that somebody else has prepared: a link would
    have another file written, a pipe would be waited for.

    Args:
        flags: as `os.open` takes them, without `O_CREAT`.

    Raises:
        OSError: it cannot be opened, or something else than a regular file has its name.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _not_regular(path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def _not_regular(path: Path) -> OSError:
    return OSError(
        errno.EINVAL, "a link or something else that is no file has this name", str(path)
    )


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, no such folder) into a UserError.

    Raises:
        UserError: an OSError was raised inside the block.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; make room or change the permissions, "
            "then run the same command again"
        ) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. Whose files may be a stranger's opens them by this.

    A pipe would be waited for without end, and a device read without end, or do something.

    Raises:
        OSError: it is none, or can't be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        OSError: it is none, is larger than `most_bytes`, or can't be read.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes", str(path))
    return content


def is_file(path: Path) -> bool:
    """Like `Path.is_file`, but False too where the system refuses the question itself.

    A name that is too long or a folder that may not be entered is then "no such file".
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Like `Path.is_dir`, with the exceptions of `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as `replace_text` does, durably.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors(path):
        replace_text(path, text, fsync=True)


def replace_text(path: Path, text: str, *, fsync: bool = False) -> None:
    """Write a text file whole or not at all, through a temporary name.

    Args:
        fsync: make it last through a power cut: the contents before the rename, then the name.

    Raises:
        OSError: the file system doesn't take it.
    """
    replace_bytes(path, text.encode(), fsync=fsync)


def replace_bytes(path: Path, content: bytes, *, fsync: bool = False) -> None:
    """Write a file as `replace_text` does."""
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.unlink(missing_ok=True)
        # "x" makes a new file: it never writes to what a link of that name points to.
        with temporary.open("xb") as file:
            file.write(content)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if fsync:
            fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut; not what is in the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
