"""Configs beside their defaults and beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from triax.launcher.config.explain import shown
from triax.launcher.config.overrides import NOTHING, section_of
from triax.launcher.config.run_config import RunConfig

_NO_DEFAULT = object()
_ABSENT = "–"


def config_rows(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each key that any config has: its path, each config's value, the default, whether
    a value is other than the default, and whether configs differ.

    A key without a default (such as `run.name`) counts as none that was changed.
    """
    flat = [_flattened(config) for config in configs]
    default: dict[str, Any] = {}
    for config in configs:
        default |= _flattened(_defaults(config))
    rows = []
    for path in dict.fromkeys(path for config in flat for path in config):
        values = [config.get(path, default.get(path, _NO_DEFAULT)) for config in flat]
        usual = default.get(path, _NO_DEFAULT)
        rows.append(
            {
                "path": path,
                "values": [_text(value) for value in values],
                "default": _text(usual),
                "changed": usual is not _NO_DEFAULT and any(v != usual for v in values),
                "differs": any(value != values[0] for value in values),
            }
        )
    return rows


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tables that a config would be with nothing but what has no default."""
    tables = {}
    for name in RunConfig.model_fields:
        try:
            section: type[BaseModel] = section_of(name, config.get(name))
            tables[name] = section.model_construct().model_dump(mode="json", warnings=False)
        except Exception:  # a file of another version, or nobody's
            tables[name] = {}
    return tables


def _flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted paths; lists are values."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            values |= _flattened(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = None if value == NOTHING else value
    return values


def _text(value: object) -> str:
    if value is _NO_DEFAULT:
        return _ABSENT
    return "none" if value is None else shown(value)
