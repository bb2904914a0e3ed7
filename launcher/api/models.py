"""A trained model to try things with, on one device.

Shape letters: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from triax.common.errors import UserError
from triax.inference.load import ModelFolder, find_model
from triax.inference.sampling import Sampling
from triax.inference.texts import Writer
from triax.inference.validation import Sequences, validate
from triax.models.layers.transformer import Transformer
from triax.parallel.evaluation import Evaluation

_DEFAULT_CONTEXT = 1024
"""Tokens, where nothing says how many the model was trained on."""


class LoadedModel:
    """A checkpoint's model and tokenizer."""

    def __init__(self, folder: ModelFolder, model: Transformer) -> None:
        self._folder, self._model = folder, model

    @property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return self._folder.path

    @property
    def model(self) -> Transformer:
        """The module, in evaluation mode, on the GPU if there is one."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was trained with.

        Raises:
            UserError: the checkpoint names none.
        """
        return self._folder.tokenizer()

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """What the model adds to a prompt; the likeliest tokens at a temperature of 0.

        Raises:
            UserError: an argument makes no sense, or the model gives nothing finite.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        writer = Writer(
            self.model,
            self.tokenizer,
            self._folder.document_tokens(),
            self._folder.context(_DEFAULT_CONTEXT),
            sampling,
            stop_tokens=tuple(self._folder.stop_tokens()),
        )
        *_, texts = writer.write([writer.encode(prompt)], max_new_tokens, [seed])
        return texts[0].added

    def logits(self, text: str | Sequence[int]) -> Tensor:
        """fp32 logits_TV of what follows each of the T tokens of a text or a list of tokens.

        Raises:
            UserError: it has no token, or more than the model's positions.
        """
        tokens = self._tokens(text)
        if not tokens:
            raise UserError("there is no token to predict from: give a text that isn't empty")
        self._folder.refuse_longer(len(tokens))
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits_BTV: Tensor = self.model.logits(torch.tensor([tokens], device=device))
        return logits_BTV[0].float().cpu()

    def evaluate(self, data: str | Path, *, sequences: int | None = None) -> Evaluation:
        """Loss, perplexity and bits per byte on prepared data, as `triax eval --data` has them.

        Args:
            data: a prefix of shards.
            sequences: only the first so many.

        Raises:
            UserError: the data can't be read, or were tokenized for another vocabulary.
        """
        return validate(str(self.path), Sequences(str(data), limit=sequences)).evaluation

    def _tokens(self, text: str | Sequence[int]) -> list[int]:
        if not isinstance(text, str):
            return list(text)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def load(path: str | Path, *, dtype: str = "fp32") -> LoadedModel:
    """Load a run's newest good checkpoint, one checkpoint, or a folder of transformers'.

    Args:
        dtype: of the weights: fp32, bf16 or fp16.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = find_model(str(path))
    return LoadedModel(folder, folder.load(dtype))
