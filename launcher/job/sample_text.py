"""A few words of a run's model, for its closing summary."""

from __future__ import annotations

import textwrap
from pathlib import Path

from triax.checkpoint.model import load_model
from triax.checkpoint.run_folder import kept_tokenizer
from triax.common.showing import tamed
from triax.data.prepare.document_tokens import tokens_of_run
from triax.data.prepare.tokenizer import decode, load_tokenizer
from triax.inference.generate import generate
from triax.launcher.config.run_config import RunConfig
from triax.models.counts import num_parameters

_LARGEST_SAMPLED = 200_000_000
"""Parameters up to which the closing summary loads the model on one CPU to let it write."""


def sample_lines(config: RunConfig, run_dir: Path, checkpoint: Path) -> list[str]:
    """A few words of the trained model, if it is small and has a tokenizer."""
    folder = kept_tokenizer(run_dir)
    if folder is None or num_parameters(config.model) > _LARGEST_SAMPLED:
        return []
    documents = tokens_of_run(config.data.model_copy(update={"tokenizer": str(folder)}))
    if documents is None:
        return []
    tokenizer = load_tokenizer(folder)
    start = documents.begin or documents.end
    model = load_model(checkpoint, config.model)
    tokens = generate(
        model,
        [start.id],
        max_new_tokens=100,
        context=config.data.seq_len,
        stop_tokens=[documents.end.id],
    )
    text = tamed(decode(tokenizer, list(tokens))).strip("\n")
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 76) or [""]]
    return ["", "the model writes:", *(f"  | {line}".rstrip() for line in lines[:16]), ""]
