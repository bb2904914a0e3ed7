"""A folder on a local drive for what DeepSpeed keeps out of memory, and the files in it.

DeepSpeed reads and writes them past the page cache, and we through it, by mapping them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import AsyncIOBuilder
from torch import Tensor

from triax.common.errors import UserError
from triax.common.files import open_own
from triax.parallel.agreement import agreed

_PREFIX = f"triax-swap-{os.getuid()}-"
_HELD = "held"
"""A file that is locked for as long as the process lives whose folder it is in."""


class SwapFolder:
    """A folder of this process's own. Collective.

    It is removed when the object or the process ends; what killed processes left is removed by the
    next that comes to the same place.

    Args:
        place: `parallel.offload_path`.

    Raises:
        UserError: on all processes, if DeepSpeed can't keep files there on one of them.
    """

    def __init__(self, place: str | None) -> None:
        assert place is not None, "`triax check` has seen to it"
        agreed(lambda: _check(Path(place)), dist.group.WORLD)
        with _alone(Path(place)):
            _remove_abandoned(Path(place))
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            self._held = (self.path / _HELD).open("w")
            fcntl.flock(self._held, fcntl.LOCK_EX)
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def mapped(path: str, num_elements: int) -> Tensor:
    """The fp32 elements at the beginning of a file; writing into them changes the file."""
    settle(path)
    return torch.from_file(path, shared=True, size=num_elements, dtype=torch.float32)


def settle(path: str) -> None:
    """Write what was changed through a mapping, and forget what is cached.

    Linux does both by itself where cached and direct access meet, but promises it for no file
    system but the local ones.
    """
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _check(place: Path) -> None:
    if (problem := _problem(place)) is not None:
        raise UserError(problem)


def _problem(place: Path) -> str | None:
    """Why DeepSpeed can't keep files there, and what to do; None if it can."""
    where = f"parallel.offload_path: {place} on {socket.gethostname()}"
    if not place.is_dir():
        return f"{where} is no folder; give one that is there on every machine"
    try:
        _try_direct_io(place)
    except OSError as error:
        return (
            f"{where} can't be written to past the page cache, as DeepSpeed does "
            f"({error.strerror}); give a folder of yours on a local drive"
        )
    return _why_no_aio()


def _why_no_aio() -> str | None:
    """Why DeepSpeed's asynchronous I/O doesn't run on this machine; None if it does."""
    builder = AsyncIOBuilder()
    where = f'parallel.offload = "nvme" needs DeepSpeed\'s aio, and on {socket.gethostname()}'
    try:  # without `silence`: DeepSpeed's test program wants the real stderr
        if not builder.is_compatible(verbose=False):
            return (
                f"{where} libaio is missing: install libaio-dev (Debian, Ubuntu) or "
                'libaio-devel (Red Hat, Fedora), or use parallel.offload = "cpu"'
            )
        builder.load(verbose=False)  # compiles it, the first time
    except Exception as error:  # whatever a compiler or a loader raises
        reason = str(error).strip().partition("\n")[0]
        return (
            f"{where} it can't be compiled ({reason}): it needs g++, ninja and Python's headers; "
            'or use parallel.offload = "cpu"'
        )
    return None


def _try_direct_io(place: Path) -> None:
    """Open a file past the page cache, which not every file system can."""
    name = place / f"{_PREFIX}{os.getpid()}.probe"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600))
    name.unlink()


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other processes from making or removing folders meanwhile."""
    with os.fdopen(open_own(place / f"{_PREFIX}lock", os.O_RDWR), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_abandoned(place: Path) -> None:
    for held in place.glob(f"{_PREFIX}*/{_HELD}"):
        # Another process may hold it, or be removing it too.
        with contextlib.suppress(OSError), os.fdopen(open_own(held, os.O_RDWR), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)
