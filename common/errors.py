"""The exit codes, and the one exception type that is the user's to mend.

Everything else that is raised is our own fault and keeps its traceback.
"""

from __future__ import annotations

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
