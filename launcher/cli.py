"""The `triax` command: finds the command's module and runs it."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

from triax.common.errors import ExitCode, UserError
from triax.common.output import show_all_text
from triax.launcher.cluster.exits import run_to_exit_code
from triax.launcher.config.overrides import parse_arguments

COMMANDS = {
    "init": ("triax.launcher.commands.init", "Write a new run's file from a recipe."),
    "check": ("triax.launcher.commands.check", "Say everything that is wrong with a config."),
    "train": ("triax.launcher.commands.train", "Train a model, or resume where a run stopped."),
    "plan": (
        "triax.launcher.commands.plan",
        "Forecast memory, speed and price of a run; find its best layout.",
    ),
    "bench": (
        "triax.launcher.commands.bench",
        "Measure a training step, its limit, and where its time goes.",
    ),
    "rehearse": (
        "triax.launcher.commands.rehearse",
        "Take a step of a large job's processes here, without a GPU.",
    ),
    "report": (
        "triax.launcher.commands.report",
        "Draw runs' curves, events and configs as one HTML file.",
    ),
    "watch": (
        "triax.launcher.commands.watch",
        "Show runs while they go on: as a page, or on the terminal.",
    ),
    "submit": ("triax.launcher.commands.submit", "Submit a run to SLURM as a batch job."),
    "tokenizer": ("triax.launcher.commands.tokenizer", "Train a tokenizer on text."),
    "data": ("triax.launcher.commands.data", "Turn text into token shards, or look into them."),
    "checkpoint": (
        "triax.launcher.commands.checkpoint",
        "List, verify, export and import checkpoints.",
    ),
    "generate": ("triax.launcher.commands.generate", "Continue a prompt with a trained model."),
    "chat": ("triax.launcher.commands.chat", "Talk with a model that was taught to answer."),
    "diagnose": (
        "triax.launcher.commands.diagnose",
        "Say what a run's processes did when it stopped or hung.",
    ),
    "eval": ("triax.launcher.commands.eval", "Measure a checkpoint's loss on a dataset."),
    "completion": (
        "triax.launcher.commands.completion",
        "Print what makes a shell complete triax's commands and options.",
    ),
    "recipe": (
        "triax.launcher.commands.recipe",
        "Take a recipe's steps, as from raw text to answers.",
    ),
}
"""Module and one-line help by name. Only the chosen command is imported: most need torch."""


class Command(Protocol):
    """What a command's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments; set `parser.epilog` to an example.

        `parser.set_defaults(overrides=())` makes the command take config overrides.
        """

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `ExitCode` for what they mean."""
    show_all_text()
    return run_to_exit_code(partial(_dispatch, list(sys.argv[1:] if argv is None else argv)))


def _dispatch(argv: list[str]) -> int:
    try:
        if not argv or argv[0].startswith("-"):
            _top_level_parser().parse_args(argv or ["--help"])
            return ExitCode.DONE
        name, *arguments = argv
        if name not in COMMANDS:
            raise UserError(_unknown(name))
        command, parser = parser_of(name)
        args = parse_arguments(parser, arguments)
        args.argv = argv  # for commands that start themselves several times
        args.parsers = all_parsers  # for the one about the others
    except SystemExit as exit_:
        # argparse ends the process after --help, --version and usage errors.
        return exit_.code if isinstance(exit_.code, int) else ExitCode.DONE
    return command.run(args)


def parser_of(name: str) -> tuple[Command, argparse.ArgumentParser]:
    """A command's module, which is imported now, and the parser of its arguments."""
    module, help_line = COMMANDS[name]
    command = cast(Command, importlib.import_module(module))
    parser = argparse.ArgumentParser(
        prog=f"triax {name}",
        description=help_line,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return command, parser


def all_parsers() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Every command's one-line help and parser, by name."""
    return {name: (text, parser_of(name)[1]) for name, (_, text) in COMMANDS.items()}


def _top_level_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:{width}}  {help_line}" for name, (_, help_line) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="triax",
        usage="triax COMMAND ...",
        description="Pretrain decoder-only transformers, on one CPU or many GPUs.",
        epilog="\n".join(
            (
                "commands:",
                *commands,
                "",
                "`triax COMMAND --help` shows a command's arguments and an example.",
                "",
                "example:",
                "  triax train examples/quickstart.toml",
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"triax {importlib.metadata.version('triax')}"
    parser.add_argument("--version", action="version", version=version)
    return parser


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean `triax {near[0]}`?" if near else f"there are {', '.join(COMMANDS)}"
    return f"unknown command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
