"""The exit codes, and the one exception type that is the user's to mend.

Everything else that is raised is our own fault and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """What a triax process tells its caller when it ends."""

    DONE = 0
    FAILED = 1
    """A fault of ours or of the machine; the traceback is shown."""
    BAD_INPUT = 2
    """The config or the data is wrong; the message says what to change."""
    STOPPED_BY_GUARD = 3
    PREEMPTED = 75
    """Stopped on request after saving; run the same command again."""


class UserError(ValueError):
    """A mistake in what the user gave us, or a condition only the user can mend.

    The message is shown without a traceback and the process exits with
    `ExitCode.BAD_INPUT`. It says what is wrong, where, what was expected and what to do.
    """


@contextmanager
def record_errors() -> Iterator[None]:
    """Turn what a record of wrong types or missing fields raises into a UserError.

    Checksums don't tell who wrote it, so a record may hold anything that JSON can.

    Raises:
        UserError: anything was raised inside the block.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "the checkpoint's record isn't one that a run writes "
            f"({type(error).__name__}: {error}); restore the checkpoint from a copy, remove it to "
            "go on from an earlier one, or choose another run.name"
        ) from error
