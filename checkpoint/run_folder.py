"""A run's folder as a whole that can be moved: its config in it, and its tokenizer. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triax.checkpoint.folders import has_begun, remove_whatever
from triax.common.errors import UserError
from triax.common.files import is_file, read_regular, write_errors
from triax.common.paths import expand

CONFIG_FILE = "config.toml"
TOKENIZER_FOLDER = "tokenizer"
_TOKENIZER_FILE = "tokenizer.json"
_KEPT_PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.*",
)
_MOST_BYTES = 1 << 28


def bring_home(config: Path, tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tables of a config, such that one in a run's folder means that run, wherever it lies.

    A run's own config.toml says where the run began. Where checkpoints lie beside it, the run is
    there now; and its own tokenizer stands in where the config's isn't to be found.
    """
    folder = config.absolute().parent.resolve()
    run = tables.get("run")
    if config.name != CONFIG_FILE or not isinstance(run, dict) or not has_begun(folder):
        return tables
    moved = {**tables, "run": {**run, "name": folder.name, "dir": str(folder.parent)}}
    data, kept = tables.get("data"), kept_tokenizer(folder)
    if isinstance(data, dict) and kept is not None and _is_missing(data.get("tokenizer")):
        moved["data"] = {**data, "tokenizer": str(kept)}
    return moved


def _is_missing(tokenizer: object) -> bool:
    """Whether a tokenizer is named, and isn't there."""
    try:
        return isinstance(tokenizer, str) and not is_file(expand(tokenizer) / _TOKENIZER_FILE)
    except UserError:
        return True


def recorded_table(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a checkpoint's record, empty where there is none: it may be a stranger's."""
    table = record.get(name)
    return table if isinstance(table, Mapping) else {}


def kept_tokenizer(run_dir: Path) -> Path | None:
    """The folder of the tokenizer that a run keeps, if it does."""
    folder = run_dir / TOKENIZER_FOLDER
    return folder if is_file(folder / _TOKENIZER_FILE) else None


def tokenizer_of(checkpoint: Path, config: Mapping[str, Any]) -> str | None:
    """The folder of the tokenizer that a checkpoint was trained with.

    It is the one that its run keeps, which moves along; else what its record's config names.
    """
    kept = kept_tokenizer(checkpoint.absolute().parent.parent)
    named = recorded_table(config, "data").get("tokenizer")
    if kept is not None:
        return str(kept)
    return named if isinstance(named, str) else None


def keep_tokenizer(tokenizer: Path | None, run_dir: Path) -> None:
    """Copy a tokenizer's files into a run's folder, unless it has that tokenizer.

    Another one there is from a start that has saved nothing, or whose checkpoints were removed.

    Args:
        tokenizer: its folder, or its `tokenizer.json`.

    Raises:
        UserError: they can't be read or written.
    """
    if tokenizer is None:
        return
    source, folder = tokenizer, run_dir / TOKENIZER_FOLDER
    file = source if is_file(source) else source / _TOKENIZER_FILE
    partial = folder.with_name(f"{TOKENIZER_FOLDER}.partial")
    with write_errors(folder):
        content, kept = read_regular(file, _MOST_BYTES), kept_tokenizer(run_dir)
        if kept is not None and read_regular(kept / _TOKENIZER_FILE, _MOST_BYTES) == content:
            return
        remove_whatever(partial)
        partial.mkdir()
        for pattern in _KEPT_PATTERNS:
            for path in filter(is_file, file.parent.glob(pattern)):
                (partial / path.name).write_bytes(read_regular(path, _MOST_BYTES))
        (partial / _TOKENIZER_FILE).write_bytes(content)
        remove_whatever(folder)
        partial.replace(folder)
