"""Pydantic's errors about one section, in plain words. Imports no torch."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from triax.launcher.config.overrides import section_class
from triax.launcher.config.problems import Problem, did_you_mean
from triax.launcher.config.run_config import RunConfig
from triax.models.presets import PRESETS

Loc = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "string_too_short": "a text that isn't empty, or leave it out",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a table",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
}
_MISSING_HINTS = {"model": f"; or give a preset: {', '.join(PRESETS)}"}


def explain(section: str, errors: list[ErrorDetails]) -> list[Problem]:
    """One problem for each thing to mend in a section.

    A misspelt required key is one problem, not also a missing one. An error about a whole table
    is left out where something inside it is wrong: it only follows from that.
    """
    by_loc: dict[Loc, ErrorDetails] = {}
    for error in errors:
        by_loc.setdefault((section, *error["loc"]), error)
    missing: defaultdict[Loc, list[str]] = defaultdict(list)
    for loc, error in by_loc.items():
        if error["type"] == "missing" and isinstance(loc[-1], str):
            missing[loc[:-1]].append(loc[-1])
    problems = []
    for loc, error in by_loc.items():
        if error["type"] == "extra_forbidden":
            problems.append(_unknown_key(loc, missing[loc[:-1]]))
        elif not _follows_from_another(loc, error, by_loc):
            message = _sentence(error).removeprefix(f"{dotted(loc)} ")
            problems.append(Problem(dotted(loc), message))
    for table, names in missing.items():
        if names:
            problems.append(Problem(dotted(table), _missing(dotted(table), names)))
    return problems


def unknown_section(name: str, present: Mapping[str, Any]) -> Problem:
    """The problem with a table that is no section of the config."""
    absent = [section for section in RunConfig.model_fields if section not in present]
    hint = did_you_mean(name, absent) or did_you_mean(name, RunConfig.model_fields)
    if not hint:
        homes = [section for section in RunConfig.model_fields if name in _keys_of(section)]
        hint = f"; did you mean {homes[0]}.{name}?" if homes else ""
    return Problem(name, "unknown section" + (hint or f"; there are {_listed_sections()}"))


def dotted(loc: Loc) -> str:
    """A config path as it is shown and overridden: `data.sources.0.weight`."""
    return ".".join(str(part) for part in loc)


def shown(value: object) -> str:
    """A value as the user wrote it, about, and short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _unknown_key(loc: Loc, missing: list[str]) -> Problem:
    """The problem with an unknown key; takes the name it may stand for out of `missing`."""
    name = str(loc[-1])
    valid = list(_fields(loc[:-1]))
    hint = did_you_mean(name, missing)
    if hint:
        missing[:] = [other for other in missing if not hint.endswith(f" {other}?")]
    hint = hint or did_you_mean(name, valid)
    if not hint:
        homes = [section for section in RunConfig.model_fields if name in _keys_of(section)]
        hint = f"; did you mean {homes[0]}.{name}?" if homes else f"; valid are {', '.join(valid)}"
    return Problem(dotted(loc), f"unknown key{hint}")


def _follows_from_another(
    loc: Loc, error: ErrorDetails, by_loc: Mapping[Loc, ErrorDetails]
) -> bool:
    if error["type"] == "missing" and isinstance(loc[-1], str):
        return True
    # Not from an unknown key: pydantic saw the table without it.
    return any(
        len(other) > len(loc) and other[: len(loc)] == loc and cause["type"] != "extra_forbidden"
        for other, cause in by_loc.items()
    )


def _missing(table: str, names: list[str]) -> str:
    keys = "a required key is missing" if len(names) == 1 else "required keys are missing"
    return f"{keys}: {', '.join(names)}{_MISSING_HINTS.get(table, '')}"


def _sentence(error: ErrorDetails) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        # Of a list's element; missing keys are gathered by table.
        return f"too few values, got {shown(given)}"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{error['msg']}, got {shown(given)}"
    sentence = f"expected {expected.format(**context)}, got {shown(given)}"
    if kind == "literal_error" and isinstance(given, str):
        sentence += did_you_mean(given, re.findall(r"'([^']*)'", context["expected"]))
    return sentence


def _fields(table: Loc) -> tuple[str, ...]:
    """The valid keys of the table at a path, list elements included."""
    annotation: Any = RunConfig
    for part in table:
        if isinstance(part, int):
            annotation = get_args(annotation)[0]
        else:
            section = section_class(annotation)
            assert section is not None
            annotation = section.model_fields[part].annotation
    section = section_class(annotation)
    assert section is not None
    return tuple(section.model_fields)


def _keys_of(section: str) -> tuple[str, ...]:
    fields: type[BaseModel] | None = section_class(RunConfig.model_fields[section].annotation)
    assert fields is not None
    return tuple(fields.model_fields)


def _listed_sections() -> str:
    return ", ".join(RunConfig.model_fields)
