"""The run directory's `config.toml`: written as resolved, and compared when a run resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel

from triax.common.errors import UserError
from triax.common.files import write_atomically
from triax.common.paths import absolute, is_path
from triax.common.section import Section
from triax.launcher.config.overrides import NOTHING, accepts_nothing, section_class, section_of
from triax.launcher.config.run_config import RunConfig
from triax.models.families import DEFAULT

BREAKING = (
    "run.seed",
    "model",
    "data.seq_len",
    "data.packing",
    "data.too_long",
    "data.mask_documents",
    "batch.global_batch_size",
)
"""What a run can't change on the way: these decide what its weights mean, which samples come
next, or how steps are counted in tokens. The tokenizer counts by its contents and the sources by
theirs (`launcher.resume`). Everything else may change."""


@dataclass(frozen=True)
class Change:
    """One config value that differs between two runs of the same directory."""

    path: str
    old: object
    """None means that it is switched off, or was not given."""
    new: object

    @property
    def breaks(self) -> bool:
        """Whether a run can't go on with it; the name of a preset says nothing by itself."""
        return self.path != "model.preset" and any(
            self.path == name or self.path.startswith(f"{name}.") for name in BREAKING
        )

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as TOML-ready tables, in which "none" stands for what is switched off."""
    return _tables(config)


def _tables(section: Section) -> dict[str, Any]:
    tables = section.model_dump(mode="json", exclude_none=True)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            tables[name] = _tables(value)
        elif value is None and accepts_nothing(field.annotation):
            tables[name] = NOTHING
    return tables


def write_resolved_config(config: RunConfig, path: Path) -> None:
    """Write the config such that loading the file gives an equal RunConfig from any folder: its
    paths are absolute.

    The file appears whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    write_atomically(path, tomli_w.dumps(absolute_paths(config_to_dict(config), RunConfig)))


def absolute_paths(tables: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """A section as tables, with paths that mean the same in every working folder."""

    def made_absolute(table: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
        paths = {name for name, field in kind.model_fields.items() if is_path(field)}
        return {
            name: absolute(value)
            if name in paths and isinstance(value, str) and value != NOTHING
            else value
            for name, value in table.items()
        }

    return _in_each_table(tables, section, made_absolute)


def diff_with_record(recorded: Mapping[str, Any], config: RunConfig) -> list[Change]:
    """What differs between the config in a checkpoint's record and the run's.

    A field that is newer than the record counts as recorded with its default.
    """

    def filled(table: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
        merged = {**kind.model_construct().model_dump(mode="json"), **table}
        return {name: merged[name] for name in kind.model_fields if name in merged} | merged

    old = _in_each_table(recorded, RunConfig, filled)
    new = config.model_dump(mode="json")
    return diff_configs(absolute_paths(old, RunConfig), absolute_paths(new, RunConfig))


def _in_each_table(
    table: Mapping[str, Any],
    kind: type[BaseModel],
    change: Callable[[Mapping[str, Any], type[BaseModel]], dict[str, Any]],
) -> dict[str, Any]:
    """A section's table, and those in it and in lists in it, each changed."""
    changed = change(table, kind)
    for name, field in kind.model_fields.items():
        value = changed.get(name)
        is_outer = kind is RunConfig
        inner = section_of(name, value) if is_outer else _inner_section(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            changed[name] = _in_each_table(value, inner, change)
        elif inner is not None and isinstance(value, list | tuple):
            changed[name] = [
                _in_each_table(item, inner, change) if isinstance(item, Mapping) else item
                for item in value
            ]
    return changed


def _inner_section(annotation: Any) -> type[BaseModel] | None:
    found = section_class(annotation)
    arms = (_inner_section(arm) for arm in get_args(annotation))
    return found or next((arm for arm in arms if arm is not None), None)


def diff_configs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every value that differs, as dotted paths in the order of the old config, then the new.

    Tables are compared key by key, lists as a whole. Configs of a time before there were families
    of models name none.
    """
    model = _as_table(old.get("model"))
    if model:
        old = {**old, "model": {"family": DEFAULT, **model}}
    return list(_differences(old, new, ""))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[Change]:
    changes = []
    for key in dict.fromkeys((*old, *new)):
        was, now, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(was, Mapping) or isinstance(now, Mapping):
            changes += _differences(_as_table(was), _as_table(now), f"{path}.")
        elif was != now:
            changes.append(Change(path, was, now))
    return changes


def _as_table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def refuse_changes(changes: list[Change]) -> None:
    """Let through what a run can change when it resumes.

    Raises:
        UserError: at least one change would break the run; it shows all of them.
    """
    if not any(change.breaks for change in changes):
        return
    lines = [f"  {change}{'   (breaks the run)' if change.breaks else ''}" for change in changes]
    raise UserError(
        "this run can't go on with a config that differs from the one it began with:\n"
        + "\n".join(lines)
        + "\nundo these changes, or start a new run with another run.name"
    )


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)
