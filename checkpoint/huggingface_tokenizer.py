"""A tokenizer's files beside exported weights, as transformers reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triax.common.files import read_regular

_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class TokenizerExport:
    """The tokenizer that a model was trained with, and what training made of its tokens."""

    path: Path
    """Its folder or its `tokenizer.json`."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the tokenizer's files have to call `eos_token` and the like; others stay."""
    ids: Mapping[str, int | list[int]] = field(default_factory=dict)
    """`eos_token_id` and the like of the model's own files; a list where generation may end with
    any of several."""


def copy_tokenizer(export: TokenizerExport, folder: Path) -> None:
    """Copy the tokenizer's files, chat templates among them, and name its tokens by their roles.

    Raises:
        OSError: one can't be read or written.
    """
    is_folder = export.path.is_dir()
    source = export.path if is_folder else export.path.parent
    shutil.copyfile(source / "tokenizer.json" if is_folder else export.path, folder / _VOCABULARY)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for name in _FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, copy_function=shutil.copyfile)
    # Without a class transformers guesses one by the model's type, which may split otherwise.
    _update(folder / "tokenizer_config.json", {"tokenizer_class": _CLASS}, export.names)
    if (folder / "special_tokens_map.json").exists():
        _update(folder / "special_tokens_map.json", {}, export.names)


_VOCABULARY = "tokenizer.json"
_CLASS = "PreTrainedTokenizerFast"
_MOST_BYTES = 1 << 28
"""Of any file of a tokenizer."""


def _update(path: Path, defaults: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Set roles, as text or inside the description that stands there."""
    content: dict[str, Any] = dict(defaults)
    if path.exists():
        content = json.loads(read_regular(path, _MOST_BYTES))
    before = dict(content)
    for role, name in names.items():
        old = content.get(role)
        if not (isinstance(old, dict) and old.get("content") == name):
            content[role] = name
    if content != before or not path.exists():
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
