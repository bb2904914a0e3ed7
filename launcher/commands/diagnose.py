"""`triax diagnose`: who did what when a run stopped or hung. Needs no torch and no GPU."""

from __future__ import annotations

import argparse

from rich.console import Console

from triax.common.errors import ExitCode
from triax.launcher.terminal.arguments import as_path
from triax.launcher.terminal.diagnosis import print_diagnosis
from triax.training.stability.diagnosis import diagnose

EXAMPLE = """\
example:
  triax diagnose runs/quickstart

It reads the run directory only, so it works on a login node, while the job
runs and after it has ended.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run_dir", type=as_path, metavar="RUN_DIR", help="for instance runs/NAME")
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Show what is known.

    Raises:
        UserError: there is no run.
    """
    console = Console(highlight=False, soft_wrap=True)
    print_diagnosis(args.run_dir, diagnose(args.run_dir), console)
    return ExitCode.DONE
