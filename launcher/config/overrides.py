"""Dotted overrides on the command line: `--batch.micro_batch_size=4`. Imports no torch."""

from __future__ import annotations

import argparse
import copy
import json
import re
import types
from collections.abc import Container, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from triax.launcher.config.problems import Problem
from triax.launcher.config.run_config import RunConfig

ORIGIN = "command line"
NOTHING = "none"
_OVERRIDE = re.compile(r"--(?P<path>\w+(?:\.[\w-]*)*)(?:=(?P<value>.*))?", re.DOTALL)


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command's arguments; a parser with the default `overrides=()` takes overrides too.

    They may stand anywhere. The namespace gets them as `overrides`, each as `a.b=value`. An option
    of the command that is called like a section is the option.
    """
    if parser.get_default("overrides") is None:
        return parser.parse_args(argv)
    options = {option for action in parser._actions for option in action.option_strings}
    arguments, overrides = split_overrides(argv, options)
    return parser.parse_args(arguments, argparse.Namespace(overrides=overrides))


def split_overrides(
    argv: Sequence[str], options: Container[str] = ()
) -> tuple[list[str], tuple[str, ...]]:
    """Part the overrides, `--a.b=value` or `--a.b value`, from a command's other arguments, among
    them its own `options`."""
    arguments: list[str] = []
    overrides: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument == "--":
            return [*arguments, *rest], tuple(overrides)
        match = _OVERRIDE.fullmatch(argument)
        is_override = match is not None and f"--{match['path']}" not in options
        if match is None or not is_override or not _is_config_path(match["path"]):
            arguments.append(argument)
        elif match["value"] is not None:
            overrides.append(argument.removeprefix("--"))
        else:
            value = next(rest, None)
            overrides.append(match["path"] if value is None else f"{match['path']}={value}")
    return arguments, tuple(overrides)


def _is_config_path(path: str) -> bool:
    return "." in path or path in RunConfig.model_fields


def apply_overrides(
    file_tables: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], set[str], list[Problem]]:
    """Put overrides, each `a.b=value`, over the file's tables; a later one wins.

    Returns new tables, the config paths that were overridden, and what is wrong with overrides.
    Whether the paths exist is left to validation.
    """
    tables = copy.deepcopy(dict(file_tables))
    overridden: set[str] = set()
    problems: list[Problem] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            problems.append(
                Problem(path, "an override is written --section.key=value", origin=ORIGIN)
            )
            continue
        table: Any = tables
        for key in keys[:-1]:
            table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            message = "reaches into a value that is no table; give the whole value as JSON"
            problems.append(Problem(path, message, origin=ORIGIN))
            continue
        table[keys[-1]] = _parse(text, field_type(keys))
        overridden.add(path)
    return tables, overridden, problems


def field_type(keys: Sequence[str | int]) -> Any:
    """The annotation of the config field at a path, or None where there is no such field."""
    annotation: Any = RunConfig
    for key in keys:
        section = section_class(annotation)
        if section is None or not isinstance(key, str) or key not in section.model_fields:
            return None
        annotation = section.model_fields[key].annotation
    return annotation


def accepts_nothing(annotation: Any) -> bool:
    """Whether the field can be switched off by the word `NOTHING`, since TOML has no null.

    A file or folder of that name is written `./none`.
    """
    return type(None) in _members(annotation)


def section_class(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation such as `PrepareConfig | None` takes, if it takes one."""
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _parse(text: str, annotation: Any) -> Any:
    """The value as the field takes it: text for a text field, JSON where it is JSON, else text."""
    members = set(_members(annotation))
    if text == "null" and type(None) in members:
        return None
    if members - {type(None)} == {str}:
        return text
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, with unions, literals and metadata unwrapped."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for arm in get_args(annotation) for member in _members(arm))
    if origin is Literal:
        return tuple({type(value) for value in get_args(annotation)})
    return (annotation,)
