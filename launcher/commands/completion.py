"""`triax completion`: a script for a shell."""

from __future__ import annotations

import argparse

from triax.common.errors import ExitCode
from triax.launcher.config.overrides import keys_of
from triax.launcher.config.run_config import RunConfig
from triax.launcher.terminal.completion import SHELLS, find_places

EXAMPLE = """\
examples:
  eval "$(triax completion bash)"          # in ~/.bashrc
  eval "$(triax completion zsh)"           # in ~/.zshrc, behind compinit
  triax completion fish > ~/.config/fish/completions/triax.fish

The script starts no triax; for one that has changed, make it anew.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=list(SHELLS), metavar="SHELL", help=", ".join(SHELLS))
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    paths = [f"{section}.{key}" for section in RunConfig.model_fields for key in keys_of(section)]
    print(SHELLS[args.shell](find_places(args.parsers(), paths)), end="")
    return ExitCode.DONE
