"""The site's reference: config, command line and Python interface, from the code itself."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

import triax
from triax.common.section import Section
from triax.launcher.cli import COMMANDS, parser_of
from triax.launcher.config.overrides import section_class
from triax.launcher.config.run_config import RunConfig
from triax.models.config import ModelConfig
from triax.models.families import FAMILIES

_FIELD = re.compile(
    r'^    (\w+):[^\n]*(?:\n        [^\n]*|\n    \)[^\n]*)*\n    """(.*?)"""', re.M | re.S
)
"""A field of a class and what stands below it."""


def config_page() -> str:
    """Every key of a run file: its type, default and description."""
    lines = ["# Config", "", "Each key of the run file, from the code. As a table with more"]
    lines += ["explanation: [The run file](../configuration.md).", ""]
    for name, field in RunConfig.model_fields.items():
        section = section_class(field.annotation)
        assert section is not None
        if section is ModelConfig:
            for family, kind in FAMILIES.items():
                lines += _section(f"{name}", kind, f', `family = "{family}"`')
        else:
            lines += _section(name, section, "")
    return "\n".join(lines).rstrip() + "\n"


def _section(path: str, section: type[Section], more: str) -> Iterator[str]:
    yield f"## `[{path}]`{more}"
    yield ""
    yield from ["| key | type | default | |", "|---|---|---|---|"]
    docs = _field_docs(section)
    inner: list[tuple[str, type[Section]]] = []
    for key, field in section.model_fields.items():
        found = section_class(field.annotation) or _listed_section(field.annotation)
        if found is not None:
            inner.append((f"{path}.{key}", found))
        default = _default(field.default, field.is_required())
        cells = [f"`{key}`", _type(field.annotation), default, docs.get(key, "")]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for name, kind in inner:
        yield from _section(name, kind, "")


def _listed_section(annotation: Any) -> type[Section] | None:
    """What a list of sections holds."""
    return section_class(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def _field_docs(section: type[Section]) -> dict[str, str]:
    """What stands below each field, in the class and those that it comes from."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if kind is object or not issubclass(kind, Section) or kind is Section:
            continue
        source = textwrap.dedent(inspect.getsource(kind))
        for match in _FIELD.finditer(source):
            found[match[1]] = " ".join(match[2].split())
    return found


def _default(value: object, is_required: bool) -> str:
    if is_required or value is PydanticUndefined:
        return "required"
    if value is None:
        return "–"
    if isinstance(value, Section):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _type(annotation: Any) -> str:
    """A type as a person says it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, args)))
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _type(args[0])
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return "table" if section_class(annotation) else name.lower().removesuffix("field")


def cli_page() -> str:
    """The help of every command and verb, as the terminal shows it."""
    os.environ["COLUMNS"] = "80"
    os.environ["NO_COLOR"] = "1"
    lines = ["# Command line", "", "What `triax COMMAND --help` shows.", ""]
    for name in COMMANDS:
        _, parser = parser_of(name)
        lines += _help(f"triax {name}", parser, "##")
    return "\n".join(lines).rstrip() + "\n"


def _help(title: str, parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    yield from (f"{level} {title}", "", "```text", parser.format_help().rstrip(), "```", "")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                yield from _help(f"{title} {verb}", inner, level + "#")


def python_page() -> str:
    """What `import triax` offers, with its docstrings."""
    lines = ["# Python", "", "What `import triax` offers; with examples: [Python](../python.md)."]
    for name in sorted(triax.__all__):
        thing = getattr(triax, name)
        lines += ["", f"## triax.{name}", ""]
        if inspect.isclass(thing):
            lines += [*_docstring(thing), *_members(name, thing)]
        elif callable(thing):
            lines += _function(f"triax.{name}", thing)
        else:
            lines += [f"`{thing!r}`"]
    return "\n".join(lines).rstrip() + "\n"


def _members(owner: str, kind: type) -> Iterator[str]:
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        inner = getattr(member, "func", getattr(member, "fget", None))
        if inner is not None or inspect.isfunction(member):
            yield from ("", f"### {owner}.{name}", "")
            yield from _docstring(inner) if inner is not None else _function(name, member)


def _function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    signature = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()")
    text = f"{name}{signature}".replace("'", "")
    yield from ("```python", text, "```", "")
    yield from _docstring(function)


def _docstring(thing: object) -> Iterator[str]:
    text = inspect.getdoc(thing) or ""
    summary, _, rest = text.partition("\n\n")
    yield " ".join(summary.split())
    if rest:
        yield from ("", "```text", rest, "```")


PAGES: dict[str, Callable[[], str]] = {
    "reference/config.md": config_page,
    "reference/cli.md": cli_page,
    "reference/python.md": python_page,
}
"""By their place in the site."""
