"""A recipe: commands that lead, one after the other, from nothing to something. No torch."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from triax.common.errors import UserError
from triax.common.section import Section
from triax.launcher.config.loading import read_config
from triax.launcher.config.problems import ConfigError, Problem
from triax.launcher.config.toml_lines import locate_keys

FILE = "recipe.toml"
EXAMPLES = Path("examples")
"""Where a recipe that is given by its name alone lies, from the folder of the command."""


class Step(Section):
    """A command with a name: `[[steps]]`."""

    name: str
    says: str
    """What it does, in a line."""
    run: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments; there is no shell."""
    short: tuple[str, ...] = ()
    """More arguments where the recipe is only tried."""
    types: tuple[str, ...] = ()
    """Lines for a command that reads what a person types."""

    def arguments(self, *, short: bool) -> list[str]:
        """What is started, as a person would type it."""
        return [*self.run, *(self.short if short else ())]


class Recipe(Section):
    """The steps in their order."""

    says: str
    """What it makes, in a line."""
    steps: tuple[Step, ...]


def read_recipe(folder: Path) -> Recipe:
    """The recipe in a folder's `recipe.toml`.

    Raises:
        ConfigError: with every problem of the file, each with its line.
        UserError: the file can't be read or is no TOML.
    """
    path = folder / FILE
    text = read_config(path)
    try:
        tables = tomllib.loads(text)
        recipe = Recipe.model_validate_json(json.dumps(tables, default=str))
    except ValidationError as error:
        lines = locate_keys(text)
        raise ConfigError(str(path), [
            Problem(".".join(map(str, found["loc"])), _words(found), lines.get(found["loc"]))
            for found in error.errors(include_url=False)
        ]) from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    if not recipe.steps:
        raise UserError(f"{path}: no step; expected at least one [[steps]] table")
    names = [step.name for step in recipe.steps]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two steps are called {twice[0]}; each needs a name of its own")
    return recipe


def _words(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        keys = Recipe.model_fields if len(error["loc"]) == 1 else Step.model_fields
        return f"unknown key; there are {', '.join(keys)}"
    return error["msg"].replace("Input should be", "expected")


def find_recipe(given: str) -> Path:
    """The folder of a recipe, by its path or by its name in `examples/`.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(given).expanduser(), EXAMPLES / given):
        if (folder / FILE).is_file():
            return folder
    there = ", ".join(sorted(path.parent.name for path in EXAMPLES.glob(f"*/{FILE}")))
    known = f"in {EXAMPLES}/ there are {there}" if there else "triax's own are in its examples/"
    raise UserError(
        f"{given}: no recipe; expected a folder with {FILE}, or the name of one in "
        f"{EXAMPLES}/ of the folder where the command is started ({known})"
    )


def executable(arguments: list[str]) -> list[str]:
    """The same with the Python and the triax that are running, whatever PATH says."""
    own = {"python": [sys.executable], "triax": [sys.executable, "-m", "triax.launcher.cli"]}
    return [*own.get(arguments[0], arguments[:1]), *arguments[1:]]
