"""What a folder of prepared data says about itself: `data.json`, and `progress.json` until then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from triax.common.errors import UserError
from triax.common.files import read_regular, write_atomically
from triax.common.section import Section
from triax.data.remote.mirror import mirrored_files

FORMAT_VERSION = 1
RECORD = "data.json"
PROGRESS = "progress.json"
TOKENIZER_ORIGIN = "made-from.json"
_MOST_BYTES = 1 << 28
_NUM_SHOWN = 3


class ChatSettings(Section):
    """How conversations were written and what of them is learned."""

    kind: Literal["conversations", "pairs"]
    loss_on: Literal["answers", "contents"]
    template_fingerprint: str
    """Of the chat template's text."""


class Settings(Section):
    """All that the shards' bytes depend on. Another value means other shards."""

    format_version: int = FORMAT_VERSION
    inputs: tuple[str, ...]
    inputs_fingerprint: str
    """Of the files' paths, sizes and times of change; see `inputs_fingerprint`."""
    text_field: str
    tokenizer_fingerprint: str
    validation_fraction: float
    tokens_per_shard: int
    end_of_text_id: int | None = None
    """None: made by an earlier version, which noted it only when it had finished."""
    begin_of_text_id: int | None = None
    """None: nothing stands at a document's beginning."""
    chat: ChatSettings | None = None
    """None: documents are text."""


class SplitCounts(Section):
    """What the finished shards of one split hold."""

    shards: int = 0
    documents: int = 0
    tokens: int = 0
    """End-of-text tokens included."""


class SplitPlan(Section):
    """Which documents are for validation, told by the hashes of their numbers, and by one cut."""

    below: int
    """Documents whose hash is smaller go to validation as a whole, the others to training."""
    cut: int | None = None
    """The number of the document that is cut in two, counted from 0."""
    cut_share: float = 0.0
    """The part of it, its end, that is for validation."""


class Progress(Section):
    """What is finished when a preparation ends early. Documents are counted over both splits."""

    settings: Settings
    split: SplitPlan | None = None
    """None: begun by an earlier version, which split by the numbers alone."""
    documents: int = 0
    train: SplitCounts = SplitCounts()
    validation: SplitCounts = SplitCounts()
    checksums: dict[str, str] = Field(default_factory=dict)
    """xxh3_128 of the finished shards' files, by name; none of those of earlier versions."""


class PreparedData(Section):
    """A finished preparation."""

    settings: Settings
    vocab_size: int
    end_of_text_id: int
    dtype: str
    split: SplitPlan | None = None
    """None: made by an earlier version."""
    train: SplitCounts
    validation: SplitCounts
    num_shared: int | None = None
    """Documents of validation that stand in the training split too; None where nobody counted."""
    checksums: dict[str, str] = Field(default_factory=dict)
    """As in `Progress`."""
    num_left_out: int = 0
    """Conversations without anything to learn from."""


class TokenizerOrigin(Section):
    """What a run's preparation made its tokenizer from; kept beside `tokenizer.json`."""

    inputs: tuple[str, ...]
    inputs_fingerprint: str
    text_field: str
    vocab_size: int
    tokenizer_fingerprint: str | None = None
    """None until the tokenizer is there: its file comes last."""


_Record = TypeVar("_Record", Progress, PreparedData, TokenizerOrigin)


def load_prepared(folder: Path) -> PreparedData | None:
    """The record of a finished preparation in this folder, here or in a store, or None.

    Raises:
        UserError: `data.json` is damaged or from another version of triax.
    """
    return _load(mirrored_files(folder, [RECORD]) / RECORD, PreparedData)


def load_progress(folder: Path) -> Progress | None:
    """The record of an unfinished preparation in this folder, or None.

    Raises:
        UserError: `progress.json` is damaged or from another version of triax.
    """
    return _load(folder / PROGRESS, Progress)


def load_tokenizer_origin(folder: Path) -> TokenizerOrigin | None:
    """What the tokenizer in this folder was made from, or None where nothing says so.

    Raises:
        UserError: `made-from.json` is damaged or from another version of triax.
    """
    return _load(folder / TOKENIZER_ORIGIN, TokenizerOrigin)


def save_tokenizer_origin(folder: Path, origin: TokenizerOrigin) -> None:
    """Write `made-from.json`.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(folder / TOKENIZER_ORIGIN, origin.model_dump_json(indent=2))


def save_prepared(folder: Path, data: PreparedData) -> None:
    """Write `data.json` and remove `progress.json`: the preparation is finished.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(folder / RECORD, data.model_dump_json(indent=2))
    (folder / PROGRESS).unlink(missing_ok=True)


def save_progress(folder: Path, progress: Progress) -> None:
    """Write `progress.json`; call it only after the shards it counts are on disk.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(folder / PROGRESS, progress.model_dump_json(indent=2))


def check_same(folder: Path, found: Section, wanted: Section) -> None:
    """Refuse to mix shards of two settings in one folder.

    Raises:
        UserError: a field differs; it is named.
    """
    old, new = found.model_dump(), wanted.model_dump()
    for name in new:
        if old[name] == new[name] or name not in found.model_fields_set:
            continue  # what an earlier version didn't note can't be compared
        if name.endswith("_fingerprint"):
            change = f"{name.removesuffix('_fingerprint')} changed since its data was prepared"
        else:
            change = (
                f"its data was prepared with {name} = {_short(old[name])}, not {_short(new[name])}"
            )
        raise UserError(
            f"{folder}: {change}; use another output folder, or delete this one to prepare anew"
        )


def _short(value: Any) -> str:
    """A setting as a config has it; of a long list the first few."""
    if isinstance(value, tuple) and len(value) > _NUM_SHOWN:
        return f"{json.dumps(value[:_NUM_SHOWN])[:-1]}, ...] ({len(value):,} of them)"
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _load(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return kind.model_validate_json(read_regular(path, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(
            f"{path}: damaged, or written by another version of triax ({reason}); "
            "delete its folder to prepare the data anew"
        ) from None
