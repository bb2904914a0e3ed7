"""`triax report`: runs as one HTML file that any browser opens, without a network. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from triax.common.errors import ExitCode, UserError
from triax.common.files import write_atomically
from triax.launcher.report.build import build_page
from triax.launcher.terminal.arguments import as_path

EXAMPLE = """\
examples:
  triax report runs/quickstart
  triax report runs/one runs/two --output both.html

One file, without a network: loss, learning rate, gradient norm, speed, memory,
evaluations, events, config and environment. Several runs are drawn over each
other and their configs compared. It reads the run directories only, so it works
while a run goes on. `triax watch RUN` serves the same page, refreshing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run_dirs", type=as_path, nargs="+", metavar="RUN", help="for instance runs/NAME"
    )
    parser.add_argument(
        "--output", type=as_path, metavar="FILE", help="the page (RUN/report.html of the first)"
    )
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Write the page.

    Raises:
        UserError: a folder holds no run, or the page can't be written.
    """
    output: Path = args.output or args.run_dirs[0] / "report.html"
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file, such as {output / 'report.html'}")
    page = build_page(args.run_dirs)
    write_atomically(output, page)
    print(f"report of {len(args.run_dirs)} run{'s' * (len(args.run_dirs) > 1)}: {output}")
    return ExitCode.DONE
