"""Read a cleaning recipe, or report everything that is wrong with it at once. Imports no torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from triax.common.errors import UserError
from triax.common.section import Section
from triax.data.clean.config import KINDS, OutputConfig, Recipe, StepConfig
from triax.launcher.config.loading import read_config
from triax.launcher.config.problems import ConfigError, Problem, did_you_mean
from triax.launcher.config.toml_lines import locate_keys

_S = TypeVar("_S", bound=Section)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        ConfigError: with every problem of the file, each with its line.
        UserError: the file can't be read or is no TOML.
    """
    text = read_config(path)
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    found: list[Problem] = []
    output = _section("output", OutputConfig, tables.get("output", {}), found)
    steps = [step for step in _steps(tables.get("steps"), found) if step is not None]
    found += [
        Problem(
            name,
            f"unknown key{did_you_mean(name, ('output', 'steps'))}; a recipe has "
            "[output] and [[steps]]",
        )
        for name in tables
        if name not in ("output", "steps")
    ]
    if found or output is None:
        lines = {".".join(map(str, loc)): line for loc, line in locate_keys(text).items()}
        raise ConfigError(str(path), [_placed(problem, lines) for problem in found])
    return Recipe.model_construct(output=output, steps=tuple(steps))


def _steps(tables: Any, found: list[Problem]) -> Iterator[StepConfig | None]:
    if not isinstance(tables, list) or not tables:
        found.append(Problem("steps", "expected at least one [[steps]] table"))
        return
    for number, table in enumerate(tables):
        path = f"steps.{number}"
        kind = table.get("step") if isinstance(table, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            given = "none is given" if kind is None else f"got {kind!r}"
            hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
            hint = hint or f"; there are {', '.join(KINDS)}"
            found.append(Problem(f"{path}.step", f"expected a kind of step, {given}{hint}"))
        else:
            yield _section(path, KINDS[kind], table, found)


def _section(path: str, kind: type[_S], table: Any, found: list[Problem]) -> _S | None:
    try:
        return kind.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        found += [_problem(path, kind, entry) for entry in error.errors(include_url=False)]
    except ValueError as error:
        found.append(Problem(path, str(error)))
    return None


def _problem(path: str, kind: type[Section], error: ErrorDetails) -> Problem:
    where = ".".join([path, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        keys = [name for name in kind.model_fields if name != "step"]
        hint = did_you_mean(str(error["loc"][-1]), keys) or f"; there are {', '.join(keys)}"
        return Problem(where, f"unknown key{hint}")
    if error["type"] == "missing":
        return Problem(path, f"a required key is missing: {error['loc'][-1]}")
    if error["type"] == "value_error":
        return Problem(where, str(error["ctx"]["error"]))
    message = error["msg"].replace("Input should be", "expected")
    return Problem(where, f"{message}, got {json.dumps(error['input'], default=str)[:60]}")


def _placed(problem: Problem, lines: dict[str, int]) -> Problem:
    """With the line of its value, or of the nearest table around it."""
    parts = problem.path.split(".")
    for depth in range(len(parts), 0, -1):
        line = lines.get(".".join(parts[:depth]))
        if line is not None:
            return Problem(problem.path, problem.message, line)
    return problem
