"""From what happens in a process to its exit code. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from triax.common.errors import ExitCode, UserError
from triax.launcher.cluster.environment import Environment
from triax.launcher.terminal.messages import print_error

INTERRUPTED = 130
PIPE_CLOSED = 141
"""What a shell reports for a process that SIGINT or SIGPIPE ended."""
_RANK_0_FIRST_SECONDS = 5
"""Enough for rank 0 to end and for its launcher to notice; too short only repeats a message."""


def run_to_exit_code(
    action: Callable[[], int], report: Callable[[UserError], None] = print_error
) -> int:
    """Run the action and return its exit code; the user's mistakes are reported in one place.

    Any other exception is a fault of ours: it goes on, and Python shows its traceback.
    """
    try:
        code = action()
        if sys.stdout is not None:  # it is where a shell has closed it (`>&-`)
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


def report_from_rank(environment: Environment, error: UserError) -> None:
    """Show what went wrong, here or everywhere: all ranks read the same config and files.

    Rank 0 speaks first. Where it has the same to say its end makes the launcher end this
    process meanwhile, and the message is shown once instead of on every rank.
    """
    if environment.rank == 0:
        print_error(error)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_RANK_0_FIRST_SECONDS)
    print_error(f"rank {environment.rank} on {environment.hostname}: {error}")
