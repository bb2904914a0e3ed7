"""`triax init`: a new run's file from a recipe. Imports no torch."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from triax.common.errors import ExitCode, UserError
from triax.common.files import write_atomically
from triax.launcher.init.recipes import RECIPES, find_recipe
from triax.launcher.init.run_file import Wanted, commands, make_run_file, stated
from triax.launcher.init.starting_point import find_data, find_start
from triax.launcher.terminal.arguments import as_path, as_path_text, count, utf8

_NAMES = textwrap.wrap(", ".join(RECIPES), 78, break_on_hyphens=False)
EXAMPLE = f"""\
examples:
  triax init first --recipe laptop-10m --data texts/
  triax init mine --recipe gpt2-124m --data corpora/mine --gpus 8
  triax init answers --recipe sft --data chats --from imported --gpus 1
  triax init --list

recipes:
  {chr(10).join(_NAMES).replace(chr(10), chr(10) + "  ")}

--data is text (a file, a folder, a glob, a dataset's name, python-stdlib) or a
folder that `triax data prepare` or `triax data conversations` made. The layout
is the fastest of the recipe's that `triax plan` finds to fit.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("name", type=utf8, metavar="NAME", nargs="?", help="of the run")
    add("--recipe", type=utf8, metavar="R", help="see below, and --list")
    add("--data", type=utf8, metavar="PATH", help="what the run learns from")
    add("--gpus", type=count, metavar="N", default=0, help="over all nodes (0: the CPU)")
    add("--gpu", metavar="NAME", default="h100", help="which: h100, a100, ... (h100)")
    add("--from", dest="start", type=as_path_text, metavar="DIR", help="a model to begin with")
    add("--tokenizer", type=as_path_text, metavar="DIR", help="that made PATH (PATH/tokenizer)")
    add("--output", type=as_path, metavar="FILE", help="(NAME.toml)")
    add("--list", action="store_true", help="say what each recipe is for")
    parser.usage = f"{parser.prog} NAME --recipe R --data PATH --gpus N [--from DIR]"
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Write the file, and say what comes next.

    Raises:
        UserError: an argument is missing or makes no sense, or the file is there already.
    """
    if args.list:
        for name, recipe in RECIPES.items():
            print(f"{name}\n{textwrap.indent(textwrap.fill(recipe.purpose, 74), '    ')}")
        return ExitCode.DONE
    missing = [f"--{key}" for key in ("recipe", "data") if getattr(args, key) is None]
    if args.name is None or missing:
        wanted = ", ".join(["NAME"] * (args.name is None) + missing)
        raise UserError(f"{wanted} is missing; `triax init --help` has examples")
    recipe = find_recipe(args.recipe)
    path = Path(f"{args.name}.toml") if args.output is None else args.output
    if path.exists():
        raise UserError(f"{path}: is there already; give another NAME or --output FILE")
    wanted_run = Wanted(
        args.name, args.recipe, str(path), args.gpus, args.gpu,
        find_data(args.data, args.tokenizer, recipe), find_start(args.start, recipe),
    )  # fmt: skip
    made = make_run_file(wanted_run)
    write_atomically(path, made.text)
    print(f"{path}: written, from the recipe {args.recipe}")
    if made.forecast is not None and made.length is not None:
        print(textwrap.fill(f"forecast: {stated(made.forecast, made.length)}", 80))
    print("now\n" + "\n".join(f"  {command}" for command in commands(wanted_run)))
    return ExitCode.DONE
