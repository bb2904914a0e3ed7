"""Read run.toml and overrides into a RunConfig, or report everything that is wrong at once.

Sections are validated one by one, so that checks across sections can run on those that are
valid while others still have mistakes. Imports no torch.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from triax.checkpoint.run_folder import bring_home
from triax.common.errors import UserError
from triax.common.section import Section
from triax.launcher.config.explain import dotted, explain, shown, unknown_section
from triax.launcher.config.overrides import (
    NOTHING,
    ORIGIN,
    accepts_nothing,
    apply_overrides,
    field_type,
    section_class,
    section_of,
)
from triax.launcher.config.problems import ConfigError, Problem, did_you_mean
from triax.launcher.config.run_config import RunConfig
from triax.launcher.config.toml_lines import locate_keys
from triax.models.families import FAMILIES, in_present_names
from triax.models.presets import PRESETS

CrossCheck = Callable[[Mapping[str, Section]], Iterable[Problem]]
"""Problems among the valid sections, each by its name."""

_MAX_DEPTH = 16
_MAX_INTEGER = 2**63
_MOST_BYTES = 1 << 24
"""Of a config file."""


def no_checks(_sections: Mapping[str, Section]) -> Iterable[Problem]:
    """Look at each section by itself only."""
    return ()


def load_config(
    path: str | Path, overrides: Sequence[str] = (), check: CrossCheck = no_checks
) -> RunConfig:
    """The config of a run: a TOML file and, over it, overrides such as `batch.micro_batch_size=4`.

    Raises:
        ConfigError: with every problem of the file, the overrides and `check`.
        UserError: the file can't be read or is no TOML.
    """
    return _load(str(path), read_config(path), overrides, check, home=Path(path))


def parse_config(
    source: str, text: str, overrides: Sequence[str] = (), check: CrossCheck = no_checks
) -> RunConfig:
    """The config of a run from the text of a TOML file; else as `load_config`.

    Args:
        source: what errors call it.
    """
    return _load(source, text, overrides, check, home=None)


def _load(
    source: str, text: str, overrides: Sequence[str], check: CrossCheck, *, home: Path | None
) -> RunConfig:
    tables = _parse(source, text)
    if home is not None:
        tables = bring_home(home, tables)
    tables, overridden, problems = apply_overrides(tables, overrides)
    sections, section_problems = _validate(tables)
    problems += section_problems
    problems += check(sections)
    if problems:
        lines = {dotted(loc): line for loc, line in locate_keys(text).items()}
        raise ConfigError(source, [_place(problem, lines, overridden) for problem in problems])
    return RunConfig(**sections)  # type: ignore[arg-type]


def read_config(path: str | Path) -> str:
    """The text of a config file.

    Raises:
        UserError: it isn't there, or isn't text.
    """
    try:
        with Path(path).open("rb") as file:  # a pipe too
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES:,} bytes")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_other_configs(Path(path))}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); a config is a TOML file, "
            "save it as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: can't be read: {reason}; a config is a TOML file") from None


def _other_configs(path: Path) -> str:
    return did_you_mean(path.name, [other.name for other in path.parent.glob("*.toml")])


def _parse(source: str, text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{source}: values are nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML: {error}") from None
    except ValueError:
        # Python's own words name a switch of the interpreter, and no line.
        raise UserError(
            f"{source}: a number of more than 4,300 digits, and none may have more than 19; "
            "look for it and shorten it"
        ) from None


def _validate(tables: Mapping[str, Any]) -> tuple[dict[str, Section], list[Problem]]:
    """The valid sections by name, and the problems of the others."""
    problems = [
        unknown_section(name, tables) for name in tables if name not in RunConfig.model_fields
    ]
    sections: dict[str, Section] = {}
    for name in RunConfig.model_fields:
        clean, found = _clean((name,), tables.get(name, {}))
        clean, unknown_names = _known_names(name, clean)
        # Without unknown keys, lest they hide what a validator of the whole table has to say.
        section = section_of(name, clean)
        clean, errors = _known_keys((name,), clean, section)
        valid, invalid = _validated(section, clean)
        found += [*_new(explain(name, section, [*errors, *invalid]), found), *unknown_names]
        problems += found
        wrong = {problem.path.split(".")[1] for problem in found if "." in problem.path}
        if wrong and wrong <= section.independent:
            # As if those were left out, lest they hide what is wrong with the others.
            rest = {key: value for key, value in clean.items() if key not in wrong}
            valid = _validated(section, rest)[0]
        elif found:
            valid = None
        if valid is not None:
            sections[name] = valid
    return sections, problems


def _validated(section: type[Section], table: Any) -> tuple[Section | None, list[ErrorDetails]]:
    """The section, or pydantic's errors."""
    # Through JSON, for it has one kind of list where pydantic's strict mode has several.
    try:
        return section.model_validate_json(json.dumps(table)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _known_keys(
    loc: tuple[str | int, ...], value: Any, annotation: Any
) -> tuple[Any, list[ErrorDetails]]:
    """The value without keys that no section has, and pydantic's error for each of those."""
    errors: list[ErrorDetails] = []
    if isinstance(value, list) and get_origin(annotation) is tuple:
        parts = [
            _known_keys((*loc, n), item, get_args(annotation)[0]) for n, item in enumerate(value)
        ]
        return [part for part, _ in parts], [error for _, found in parts for error in found]
    section = section_class(annotation)
    if section is None or not isinstance(value, dict):
        return value, errors
    known = {}
    for key, item in value.items():
        if key in section.model_fields:
            known[key], found = _known_keys((*loc, key), item, section.model_fields[key].annotation)
            errors += found
        else:
            errors.append(
                {"type": "extra_forbidden", "loc": (*loc[1:], key), "msg": "", "input": item}
            )
    return known, errors


def _new(problems: list[Problem], known: list[Problem]) -> list[Problem]:
    """Without what is said already about the same value, or about one inside it."""
    return [
        problem
        for problem in problems
        if not any(
            other.path == problem.path or other.path.startswith(f"{problem.path}.")
            for other in known
        )
    ]


def _known_names(section: str, table: Any) -> tuple[Any, list[Problem]]:
    """The table with some preset and family in the place of unknown ones, so that the rest can be
    looked at; and the problems with their names."""
    problems: list[Problem] = []
    if section != "model" or not isinstance(table, dict):
        return table, problems
    table = in_present_names(table)
    for key, valid in (("preset", PRESETS), ("family", FAMILIES)):
        name = table.get(key)
        if isinstance(name, str) and name not in valid:
            hint = did_you_mean(name, valid) or f"; there are {', '.join(valid)}"
            problems.append(Problem(f"model.{key}", f"no {key} is called {shown(name)}{hint}"))
            table = {**table, key: next(iter(valid))}
    return table, problems


def _clean(loc: tuple[str | int, ...], value: Any) -> tuple[Any, list[Problem]]:
    """The value as JSON can hold it, and the problems of what JSON can't hold."""
    if value == NOTHING and accepts_nothing(field_type(loc)):
        return None, []
    if len(loc) > _MAX_DEPTH:
        return None, [Problem(dotted(loc), "nested too deeply")]
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        cleaned = {key: _clean((*loc, key), item) for key, item in pairs}
        problems = [problem for _, found in cleaned.values() for problem in found]
        items = {key: item for key, (item, _) in cleaned.items()}
        return items if isinstance(value, dict) else list(items.values()), problems
    reason = _unfit(value)
    if reason is None:
        return value, []
    return None, [Problem(dotted(loc), reason)]


def _unfit(value: Any) -> str | None:
    """Why a single value can't be any config value, if so."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if abs(value) < _MAX_INTEGER else f"{shown(value)} is too large a number"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"expected a finite number, got {value}"
    if isinstance(value, str):
        fits = value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
        return None if fits else "is not UTF-8 text"
    return f"no config value is a date, got {value}; put text in quotes"


def _place(problem: Problem, lines: Mapping[str, int], overridden: set[str]) -> Problem:
    """Say where the value, or else the nearest table around it, is written."""
    if problem.origin:
        return problem
    parts = problem.path.split(".")
    for depth in range(len(parts), 0, -1):
        path = ".".join(parts[:depth])
        if path in overridden:
            return replace(problem, origin=ORIGIN)
        if path in lines:
            return replace(problem, line=lines[path])
    if any(path.startswith(f"{problem.path}.") for path in overridden):
        return replace(problem, origin=ORIGIN)
    return problem
