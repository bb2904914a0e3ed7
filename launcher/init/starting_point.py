"""What a new run is to read and to begin with, found from what the command line names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.common.files import is_file
from triax.data.prepare.inputs import resolve
from triax.data.prepare.tokenizer import load_tokenizer, vocabulary_size
from triax.data.read.shards import find_shards
from triax.data.read.token_weights import recorded_group_size
from triax.launcher.checks.initial_weights import find_initial
from triax.launcher.init.recipes import Recipe, Takes
from triax.models.config import ModelConfig
from triax.models.families import recorded_model

_MADE_BY = {
    "text": "data prepare",
    "conversations": "data conversations",
    "pairs": "data conversations --pairs",
}


@dataclass(frozen=True)
class Text:
    """Text that the run makes a tokenizer and shards of."""

    path: str


@dataclass(frozen=True)
class Shards:
    """What `triax data prepare` or `triax data conversations` has made.

    Attributes:
        train, validation: prefixes.
        tokenizer: its folder.
        vocab_size: the tokenizer's.
    """

    train: str
    validation: str | None
    tokenizer: str
    vocab_size: int


@dataclass(frozen=True)
class Start:
    """The model that the run begins with."""

    path: str
    model: ModelConfig


def find_data(path: str, tokenizer: str | None, recipe: Recipe) -> Text | Shards:
    """What --data names: a folder of shards, or text.

    Raises:
        UserError: nothing is there, or not what the recipe learns from.
    """
    folder = Path(path)
    if not _has_shards(folder / "train"):
        return _text(path, tokenizer, recipe)
    held = _held(folder / "train")
    if held != recipe.takes:
        raise UserError(
            f"--data {path}: holds {held}, and this recipe learns from {recipe.takes}: `triax "
            f"{_MADE_BY[recipe.takes]}` makes them"
        )
    chosen = Path(tokenizer) if tokenizer is not None else folder / "tokenizer"
    if tokenizer is None and not is_file(chosen / "tokenizer.json"):
        raise UserError(
            f"--data {path}: which tokenizer made it? There is no {chosen}: name its folder with "
            "--tokenizer DIR"
        )
    size = vocabulary_size(load_tokenizer(chosen))
    validation = folder / "validation"
    return Shards(
        str(folder / "train"),
        str(validation) if _has_shards(validation) else None,
        str(chosen),
        size,
    )


def find_start(path: str | None, recipe: Recipe) -> Start | None:
    """The model that --from names.

    Raises:
        UserError: there is none, or one is given to a recipe that begins with nothing.
    """
    if path is None:
        if recipe.has_start:
            raise UserError(
                "this recipe begins with a model: give --from DIR, a run or a checkpoint; `triax "
                "checkpoint import MODEL --output DIR` makes one of a model of transformers"
            )
        return None
    if not recipe.has_start:
        raise UserError(
            f"--from {path}: this recipe begins with weights of its own; continued-pretraining, "
            "long-context, sft and dpo begin with a model"
        )
    if not Path(path).exists():
        raise UserError(f"--from {path}: no such checkpoint")
    record: Mapping[str, Any] = find_initial(Path(path))
    config = record.get("config")
    if not isinstance(config, Mapping) or not config.get("model"):
        raise UserError(f"--from {path}: its record doesn't say what model it is")
    return Start(path, recorded_model(config["model"]))


def _text(path: str, tokenizer: str | None, recipe: Recipe) -> Text:
    command = f"triax {_MADE_BY[recipe.takes]} {path} --tokenizer MODEL --output DIR"
    if recipe.takes != "text":
        raise UserError(
            f"--data {path}: this recipe learns from {recipe.takes}, which lie in a folder that "
            f"`{command}` makes; name that folder"
        )
    try:
        resolve(path)
    except UserError as error:
        raise UserError(f"--data {error}") from None
    if recipe.has_start or tokenizer is not None:
        raise UserError(
            f"--data {path}: text, and a tokenizer is there already: `{command}` makes shards "
            "with it; name that folder"
        )
    return Text(path)


def _has_shards(prefix: Path) -> bool:
    try:
        return bool(find_shards(prefix))
    except (UserError, OSError):
        return False


def _held(prefix: Path) -> Takes:
    sizes = {recorded_group_size(Path(shard)) for shard in find_shards(prefix)} - {None}
    if not sizes:
        return "text"
    return "pairs" if 2 in sizes else "conversations"
