"""What a family's model folders of Hugging Face transformers are, beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from triax.models.config import ModelConfig


@dataclass(frozen=True)
class Theirs:
    """A tensor of theirs, made of some of ours."""

    name: str
    ours: tuple[str, ...]
    """Names of ours; of several, the output features lie one after the other."""
    is_transposed: bool = False
    """Whether a weight is (in features, out features), as `Conv1D` keeps it."""
    expert: int | None = None
    """Which matrix of ours it is, where ours holds those of all experts."""

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Their tensor, contiguous."""
        parts = [tensors[name] for name in self.ours]
        if self.expert is not None:
            parts = [part[self.expert] for part in parts]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (joined.T if self.is_transposed else joined).contiguous()

    def split(
        self, tensor: Tensor, shapes: Mapping[str, tuple[int, ...]]
    ) -> Iterator[tuple[str, Tensor]]:
        """Our tensors by name, contiguous, or one expert's matrix of each; one of another shape
        than theirs should have comes whole, for the caller to refuse."""
        turned = tensor.T if self.is_transposed and tensor.ndim == 2 else tensor
        sizes = [shapes[name][0 if self.expert is None else 1] for name in self.ours]
        fits = turned.ndim > 0 and turned.shape[0] == sum(sizes)
        parts = turned.split(sizes) if fits else [turned] * len(sizes)
        for name, part in zip(self.ours, parts, strict=True):
            yield name, part.contiguous()


class Format(Protocol):
    """One family's table: a module of this folder."""

    def to_huggingface(
        self,
        model: ModelConfig,
        *,
        dtype: str,
        seq_len: int,
        special_tokens: Mapping[str, int | list[int]],
    ) -> dict[str, Any]:
        """The contents of `config.json`; see `formats.to_huggingface`."""

    def from_huggingface(
        self, config: Mapping[str, Any], *, is_tied: bool, where: str
    ) -> ModelConfig:
        """The model of a `config.json`.

        Args:
            config: its contents.
            is_tied: whether the weights have no head, where the config doesn't say.
            where: the file's name for messages.

        Raises:
            UserError: no model of the family computes the same, or a field is missing or wrong.
        """

    def tensors(self, model: ModelConfig) -> Iterator[Theirs]:
        """Their tensors, in the order of the model."""

    def known_as(self, name: str) -> str | None:
        """A tensor's name in the table, for one in a file; None for what follows from the
        config."""
