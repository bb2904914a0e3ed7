"""`triax watch`: runs as a page that refreshes, or on the whole terminal. No torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from triax.common.errors import ExitCode, UserError
from triax.launcher.config.loading import load_config
from triax.launcher.report.records import read_run
from triax.launcher.report.serving import LOOPBACK, PageServer
from triax.launcher.report.terminal import draw
from triax.launcher.terminal.arguments import as_path, count, positive_int
from triax.training.step.budget import resolve_budget

EXAMPLE = """\
examples:
  triax watch runs/quickstart
  triax watch runs/quickstart --terminal
  ssh -L 8123:127.0.0.1:8123 node triax watch runs/quickstart --port 8123

Serves the page of `triax report`, refreshing, on this machine's loopback
interface only; the address that it prints has a token, without which nothing
is answered. It only reads, also a run on a shared file system. Ctrl-C ends it,
and nothing of the run.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run_dirs", type=as_path, nargs="+", metavar="RUN", help="for instance runs/NAME"
    )
    parser.add_argument("--terminal", action="store_true", help="on the whole terminal instead")
    parser.add_argument("--port", type=count, default=0, metavar="N", help="any free one if 0 (0)")
    parser.add_argument(
        "--host", default=LOOPBACK, metavar="ADDRESS", help="another interface (127.0.0.1)"
    )
    parser.add_argument(
        "--every", type=positive_int, default=5, metavar="SECONDS", help="between looks (5)"
    )
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Show the runs until Ctrl-C.

    Raises:
        UserError: a folder holds no run, or the port is taken.
    """
    for path in args.run_dirs:
        read_run(path)
    if args.port > 65535:
        raise UserError(f"--port {args.port}: ports end at 65535")
    try:
        if args.terminal:
            _watch_terminal(args.run_dirs, args.every)
        else:
            _serve(PageServer(args.run_dirs, args.host, args.port, args.every))
    except KeyboardInterrupt:
        print()
    return ExitCode.DONE


def _serve(server: PageServer) -> None:
    with server:
        print(f"open {server.url}\n(Ctrl-C ends it)", flush=True)
        server.serve_forever()


def _watch_terminal(paths: list[Path], seconds: float) -> None:
    if len(paths) > 1:
        raise UserError("--terminal shows one run; the page, without --terminal, shows several")
    console = Console(highlight=False)
    if not console.is_terminal:
        raise UserError("--terminal needs a terminal; `triax report` writes a page instead")
    [path] = paths
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            size = console.size
            live.update(
                draw(read_run(path), _num_steps(path), size.width, size.height), refresh=True
            )
            time.sleep(seconds)


def _num_steps(path: Path) -> int | None:
    try:
        config = load_config(path / "config.toml")
        per_step = config.batch.global_batch_size * config.data.seq_len
        return resolve_budget(config.budget, config.model, per_step).num_steps
    except UserError:
        return None
