"""`triax recipe`: take the steps of a recipe, one command after the other. No torch."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path

from triax.common.errors import ExitCode
from triax.common.files import make_folder
from triax.launcher.recipes.recipe import find_recipe, read_recipe
from triax.launcher.recipes.steps import set_out, start_process, take_steps
from triax.launcher.terminal.arguments import as_path

EXAMPLE = """\
The recipe's files are copied into the folder of the work, and each command is
shown before it runs there. Interrupted, the same command goes on: steps that
are done are passed over. Delete the folder to begin anew.

examples:
  triax recipe from-scratch --list
  triax recipe from-scratch
  triax recipe from-scratch --short
  triax recipe from-scratch --from sft
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a folder with recipe.toml, or its name in examples/"
    )
    parser.add_argument(
        "--folder", type=as_path, metavar="DIR", help="of the work (the recipe's name)"
    )
    parser.add_argument(
        "--short", action="store_true", help="try all steps in a minute or two, in NAME-short"
    )
    parser.add_argument("--from", dest="begin_at", metavar="STEP", help="do it and the rest again")
    parser.add_argument("--list", action="store_true", help="show the steps and do nothing")
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Take the steps.

    Raises:
        UserError: the recipe can't be read, or a step can't be begun.
    """
    source = find_recipe(args.recipe)
    name = source.resolve().name + ("-short" if args.short else "")
    folder: Path = args.folder or Path(name)
    if args.list:
        recipe = read_recipe(source)
        print(recipe.says)
        for step in recipe.steps:
            print(f"\n{step.name}: {step.says}\n$ {shlex.join(step.arguments(short=args.short))}")
        return ExitCode.DONE
    make_folder(folder)
    set_out(source, folder)
    recipe = read_recipe(folder)
    code = take_steps(
        recipe,
        folder,
        short=args.short,
        begin_at=args.begin_at,
        say=partial(print, flush=True),
        start=start_process,
    )
    if code == 0:
        print(f"\nall {len(recipe.steps)} steps are done, in {folder}")
    return code
