"""A run's config as Python gives it: a file, tables, or both with values changed. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from triax.common.errors import UserError
from triax.launcher.checks.sections import find_problems, load_checked
from triax.launcher.config.loading import parse_config
from triax.launcher.config.overrides import NOTHING
from triax.launcher.config.resolved import config_to_dict
from triax.launcher.config.run_config import RunConfig

Config = str | Path | Mapping[str, Any] | RunConfig


def checked_config(config: Config, changes: Mapping[str, Any], world_size: int) -> RunConfig:
    """The config that `triax train` would begin with.

    Args:
        config: a TOML file, or its tables.
        changes: sections with the keys to change, such as `{"optimizer": {"lr": 1e-3}}`.
        world_size: how many processes there will be.

    Raises:
        ConfigError: with every problem there is.
        UserError: the file can't be read, or the tables are none.
    """
    overrides = list(overrides_of(changes))
    if isinstance(config, str | Path):
        return load_checked(config, overrides, world_size)
    tables = config_to_dict(config) if isinstance(config, RunConfig) else _plain(config)
    try:
        text = tomli_w.dumps(tables)
    except (TypeError, ValueError) as error:
        raise UserError(f"the config holds what TOML can't: {error}") from None
    return parse_config(
        "the config", text, overrides, partial(find_problems, world_size=world_size)
    )


def overrides_of(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested tables as the overrides of a command line, such as `optimizer.lr=0.001`."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from overrides_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={_as_text(value)}"


def _as_text(value: object) -> str:
    if value is None:
        return NOTHING
    return str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)


def _plain(value: Any) -> Any:
    """With "none" for None and text for paths, as a TOML file has them."""
    if value is None:
        return NOTHING
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
