"""Folders that `datasets.save_to_disk` has written: which of their files hold the rows."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.common.files import read_regular

_MANY_SPLITS = "dataset_dict.json"
_ONE_SPLIT = {"dataset_info.json", "state.json"}
_MOST_BYTES = 1 << 24


def saved_files(folder: Path, names: Collection[str]) -> list[Path] | None:
    """The Arrow files of a saved dataset in their order; None for any other folder.

    Of a DatasetDict it is the training split, or the only one.

    Args:
        names: of what lies in the folder.

    Raises:
        UserError: it is damaged, or has several splits of which none is `train`.
    """
    if _MANY_SPLITS in names:
        splits = _strings(_read(folder / _MANY_SPLITS).get("splits"), folder / _MANY_SPLITS)
        chosen = "train" if "train" in splits else splits[0]
        if len(splits) > 1 and chosen != "train":
            raise UserError(
                f"{folder}: has the splits {', '.join(splits)} and none called train; name one: "
                f"{folder / chosen}"
            )
        return _files(folder / chosen)
    return _files(folder) if set(names) >= _ONE_SPLIT else None


def _files(folder: Path) -> list[Path]:
    path = folder / "state.json"
    entries = _read(path).get("_data_files")
    entries = entries if isinstance(entries, list) else []
    listed = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    found = [folder / name for name in _strings(listed, path)]
    for file in found:
        if not file.is_file():
            raise UserError(f"{file}: missing, though state.json names it; save the dataset again")
    return found


def _strings(value: object, path: Path) -> list[str]:
    """Names of entries of the same folder, at least one."""
    is_sound = isinstance(value, list) and all(
        isinstance(name, str) and name and Path(name).name == name for name in value
    )
    if not is_sound or not value:
        raise UserError(f"{path}: damaged; save the dataset again with `datasets.save_to_disk`")
    return list(value)  # type: ignore[call-overload,no-any-return]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read: {error}; save the dataset again") from None
    return value if isinstance(value, dict) else {}
