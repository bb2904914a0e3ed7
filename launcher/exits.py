"""From what happens in a process to its exit code. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from triax.common.errors import ExitCode, UserError
from triax.launcher.messages import print_error

INTERRUPTED = 130
PIPE_CLOSED = 141
"""What a shell reports for a process that SIGINT or SIGPIPE ended."""


def run_to_exit_code(
    action: Callable[[], int], report: Callable[[UserError], None] = print_error
) -> int:
    """Run the action and return its exit code; the user's mistakes are reported in one place.

    Any other exception is a fault of ours: it goes on, and Python shows its traceback.
    """
    try:
        code = action()
        sys.stdout.flush()
    except UserError as error:
        report(error)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Or the interpreter would fail again when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code
