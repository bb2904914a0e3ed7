"""A checkpoint as a model and a tokenizer to try things with, on one device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from triax.checkpoint.folders import inspect, resolve_checkpoint
from triax.checkpoint.huggingface import import_huggingface
from triax.checkpoint.reading import load_model, model_of
from triax.checkpoint.run_folder import recorded_table, tokenizer_of
from triax.common.errors import UserError
from triax.common.files import is_file, read_regular
from triax.data.prepare.document_tokens import DocumentTokens
from triax.data.prepare.tokenizer import MOST_BYTES, load_tokenizer, vocabulary_size
from triax.inference.export_tokens import recorded_tokens
from triax.models.families import recorded_model
from triax.models.layers.transformer import Transformer


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's model on its device, and how it was trained."""

    path: Path
    model: Transformer
    tokenizer_folder: str | None
    seq_len: int | None
    """The training context, or the longest that the model is for; None where nothing says (an
    imported checkpoint)."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's."""

    def context(self, wanted: int) -> int:
        """The tokens that the model is shown at once: as in training, or else so many as wanted and
        possible."""
        return self.seq_len or min(wanted, self._num_positions or wanted)

    def refuse_longer(self, seq_len: int) -> None:
        """Sequences with more tokens than the model has learned positions.

        Raises:
            UserError: it is one.
        """
        if self._num_positions is not None and seq_len > self._num_positions:
            raise UserError(
                f"{self.path}: the model has {self._num_positions} learned positions, too few for "
                f"sequences of {seq_len} tokens"
            )

    @property
    def _num_positions(self) -> int | None:
        return self.model.description.architecture.num_positions

    def tokenizer(self, folder: str | None = None) -> Tokenizer:
        """The tokenizer in the folder, or the one that the model was trained with.

        Raises:
            UserError: there is none, or it has more tokens than the model.
        """
        chosen = self.chosen_tokenizer(folder)
        tokenizer = load_tokenizer(Path(chosen))
        size = vocabulary_size(tokenizer)
        if size > self.model.config.vocab_size:
            raise UserError(
                f"{chosen}: has {size} tokens, the model of {self.path} only "
                f"{self.model.config.vocab_size}: give the model's own with --tokenizer DIR"
            )
        return tokenizer

    def document_tokens(self, folder: str | None = None) -> DocumentTokens:
        """What stands where documents end and begin, in the tokenizer that `tokenizer` loads.

        Raises:
            UserError: there is no tokenizer, or it lacks what the checkpoint's record names.
        """
        return recorded_tokens(self.record, self.chosen_tokenizer(folder))

    def chosen_tokenizer(self, folder: str | None = None) -> str:
        """The folder of the tokenizer that `tokenizer` loads.

        Raises:
            UserError: there is none.
        """
        chosen = folder or self.tokenizer_folder
        if chosen is None:
            raise UserError(f"{self.path}: names no tokenizer: give one with --tokenizer DIR")
        return chosen


def load_checkpoint(path: str, dtype: str = "fp32") -> Loaded:
    """Load a checkpoint, a run's newest good one, or a folder of transformers', on the GPU if there
    is one.

    Args:
        dtype: of the weights, `fp32` or `bf16`; logits are in fp32.

    Raises:
        UserError: there is none, it is damaged, or it doesn't say what model it holds.
    """
    folder = Path(path)
    loaded = _load_huggingface(folder) if is_file(folder / "config.json") else _load_own(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = loaded.model.to(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    return replace(loaded, model=model.eval())


def _load_huggingface(folder: Path) -> Loaded:
    config, weights = import_huggingface(folder)
    model = model_of(config, {name: tensor.float() for name, tensor in weights.items()})
    longest = json.loads(read_regular(folder / "config.json", MOST_BYTES)).get(
        "max_position_embeddings"
    )
    has_tokenizer = is_file(folder / "tokenizer.json")
    return Loaded(
        folder,
        model,
        str(folder) if has_tokenizer else None,
        longest if _is_length(longest) else None,
        {"config": {"model": config.model_dump(mode="json")}},
    )


def _load_own(path: str) -> Loaded:
    info = inspect(resolve_checkpoint(Path(path)))
    if info.manifest is None:
        raise UserError(str(info.problem))
    record = info.manifest.record
    config = recorded_table(record, "config")
    try:
        model_config = recorded_model(config.get("model"))
    except ValidationError as error:
        raise UserError(f"{info.path}: its record holds no valid model: {error}") from None
    seq_len = recorded_table(config, "data").get("seq_len")
    return Loaded(
        info.path,
        load_model(info.path, model_config),
        tokenizer_of(info.path, config),
        seq_len if _is_length(seq_len) else None,
        record,
    )


def _is_length(value: object) -> bool:
    return isinstance(value, int) and value > 0
