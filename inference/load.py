"""A folder with a trained model: what it says of it, and its weights, once somewhere wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from triax.checkpoint.folders import inspect, resolve_checkpoint
from triax.checkpoint.huggingface import end_tokens, import_huggingface, read_json
from triax.checkpoint.model import check_model, read_model_into
from triax.checkpoint.run_folder import recorded_table, tokenizer_of
from triax.common.errors import UserError
from triax.common.files import is_file
from triax.data.prepare.document_tokens import DocumentTokens, special_tokens
from triax.data.prepare.tokenizer import load_tokenizer, vocabulary_size
from triax.inference.export_tokens import recorded_tokens
from triax.inference.spread import copy_part, empty_model
from triax.inference.team import Team
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.families import recorded_model
from triax.models.layers.transformer import Transformer
from triax.parallel.dtypes import DTYPES


@dataclass(frozen=True)
class ModelFolder:
    """A trained model as its folder tells of it. No weights are in memory."""

    path: Path
    config: ModelConfig
    fill: Callable[[Mapping[str, Tensor]], None]
    """Reads weights into the given tensors, which may be parts of spread ones, by the names of a
    whole model."""
    tokenizer_folder: str | None
    seq_len: int | None
    """The training context, or the longest that the model is for; None where nothing says (an
    imported checkpoint)."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's."""
    ends: tuple[int, ...] = ()
    """Tokens that its `generation_config.json` ends texts with."""

    def load(self, dtype: str = "fp32", team: Team | None = None) -> Transformer:
        """The model, or this process's part of it, with its weights.

        Args:
            dtype: of the weights, `fp32` or `bf16`; logits are in fp32.
            team: who shares it; by default nobody.

        Raises:
            UserError: the weights can't be read or divided.
        """
        team = team or Team.alone()
        team.refuse_indivisible(self.config, self.path)
        model = empty_model(self.config, DTYPES[dtype], team)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.fill({name: tensor.detach() for name, tensor in tensors.items()})
        return model

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
        return describe(self.config).architecture.num_positions

    def tokenizer(self, folder: str | None = None) -> Tokenizer:
        """The tokenizer in the folder, or the one that the model was trained with.

        Raises:
            UserError: there is none, or it has more tokens than the model.
        """
        chosen = self.chosen_tokenizer(folder)
        tokenizer = load_tokenizer(Path(chosen))
        size = vocabulary_size(tokenizer)
        if size > self.config.vocab_size:
            raise UserError(
                f"{chosen}: has {size} tokens, the model of {self.path} only "
                f"{self.config.vocab_size}: give the model's own with --tokenizer DIR"
            )
        return tokenizer

    def document_tokens(self, folder: str | None = None) -> DocumentTokens:
        """What stands where documents end and begin, in the tokenizer that `tokenizer` loads.

        Raises:
            UserError: there is no tokenizer, or it lacks what the checkpoint's record names.
        """
        return recorded_tokens(self.record, self.chosen_tokenizer(folder))

    def stop_tokens(self, folder: str | None = None) -> set[int]:
        """What ends a text: what did so in training, the tokenizer's own end, which a model that is
        tuned further may learn, and `ends`. An exported model stops at the same.

        Raises:
            UserError: as `document_tokens`.
        """
        own = special_tokens(self.chosen_tokenizer(folder)).get("eos_token")
        known = {self.document_tokens(folder).end.id, *self.ends}
        return known if own is None else known | {own.id}

    def chosen_tokenizer(self, folder: str | None = None) -> str:
        """The folder of the tokenizer that `tokenizer` loads.

        Raises:
            UserError: there is none.
        """
        chosen = folder or self.tokenizer_folder
        if chosen is None:
            raise UserError(f"{self.path}: names no tokenizer: give one with --tokenizer DIR")
        return chosen


def find_model(path: str) -> ModelFolder:
    """The model of a checkpoint, of a run's newest good one, or in a folder of transformers'.

    Raises:
        UserError: there is none, it is damaged, or it doesn't say what model it holds.
    """
    folder = Path(path)
    return _of_huggingface(folder) if is_file(folder / "config.json") else _of_run(path)


def _of_huggingface(folder: Path) -> ModelFolder:
    config, read = import_huggingface(folder)
    held = [read]

    @torch.no_grad()
    def fill(tensors: Mapping[str, Tensor]) -> None:
        weights = held.pop() if held else import_huggingface(folder)[1]  # let go of afterwards
        for name, tensor in tensors.items():
            copy_part(tensor, weights[name])

    longest = read_json(folder / "config.json").get("max_position_embeddings")
    has_tokenizer = is_file(folder / "tokenizer.json")
    return ModelFolder(
        folder,
        config,
        fill,
        str(folder) if has_tokenizer else None,
        longest if _is_length(longest) else None,
        {"config": {"model": config.model_dump(mode="json")}},
        _ends(folder / "generation_config.json", config.vocab_size),
    )


def _ends(path: Path, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end texts; none where the file can't be read."""
    ends: list[Any] = []
    with suppress(UserError):
        ends = end_tokens(read_json(path))
    return tuple(end for end in ends if type(end) is int and 0 <= end < vocab_size)


def _of_run(path: str) -> ModelFolder:
    info = inspect(resolve_checkpoint(Path(path)))
    if info.manifest is None:
        raise UserError(str(info.problem))
    record = info.manifest.record
    config = recorded_table(record, "config")
    try:
        model_config = recorded_model(config.get("model"))
    except ValidationError as error:
        raise UserError(f"{info.path}: its record holds no valid model: {error}") from None
    check_model(info.path, model_config, info.manifest)

    def fill(tensors: Mapping[str, Tensor]) -> None:
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        read_model_into(info.path, model_config, named, info.manifest)

    seq_len = recorded_table(config, "data").get("seq_len")
    return ModelFolder(
        info.path,
        model_config,
        fill,
        tokenizer_of(info.path, config),
        seq_len if _is_length(seq_len) else None,
        record,
    )


def _is_length(value: object) -> bool:
    return isinstance(value, int) and value > 0
