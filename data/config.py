"""The `[data]` section: which tokens a run reads, and how they were made. Imports no torch."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from triax.common.paths import PathField
from triax.common.section import PositiveFp32, Section

SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end-of-text token."""


TooLong = Literal["drop", "truncate"]


class SourceConfig(Section):
    """One source of samples in the blend."""

    path: PathField
    """A prefix: `PATH.bin` and `PATH.idx`, or all of `PATH-00000.bin`, `PATH-00001.bin`, ..."""
    weight: PositiveFp32 = 1.0
    """This source's share of the samples, relative to the other weights."""


class PrepareConfig(Section):
    """How to make the tokenizer and the shards when they are missing at the run's start."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs, a `datasets` name, or `python-stdlib` (Python's own source)."""
    output: PathField
    """The folder for `tokenizer/`, `train` and `validation` shards."""
    vocab_size: int = Field(ge=SMALLEST_VOCABULARY)
    """The 256 bytes, the end-of-text token, and so many merges as are left."""
    validation_fraction: float = Field(0.01, gt=0, lt=1)
    text_field: str = "text"


class DataConfig(Section):
    """Which shards are read, in which shares, in windows of which length."""

    independent: ClassVar[frozenset[str]] = frozenset({"mask_documents", "verify", "prefetch"})
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    validation: PathField | None = None
    """Prefix of the shards for validation; none means that no validation is run."""
    tokenizer: PathField | None = None
    """Folder that holds `tokenizer.json`; needed to show samples and to export."""
    end_of_text: str | None = Field(None, min_length=1)
    """The token that ends a document. By default the tokenizer's own `eos_token`, else
    `<|endoftext|>`, `<|end_of_text|>`, `</s>` or `<|eot_id|>`."""
    begin_of_text: str | None = Field(None, min_length=1)
    """A token that each document begins with; by default none does."""
    seq_len: int = Field(gt=0, lt=1 << 31)
    mask_documents: bool = True
    """Tokens attend only within their own document, and no loss is taken across documents."""
    too_long: TooLong = "drop"
    """What is done to a conversation of more than `seq_len + 1` tokens: it is left out, or its end
    is (of a pair each answer may take half of that then)."""
    prepare: PrepareConfig | None = None
    verify: Literal["start", "background", "never"] = "background"
    """When the shards' bytes are compared with the checksums in `data.json`: before the first step,
    at leisure beside the steps, or not at all. Shards without checksums are named and passed."""
    prefetch: int = Field(2, ge=0, le=1000)
    """Batches read ahead by a thread."""

    @model_validator(mode="after")
    def _distinct(self) -> DataConfig:
        paths = {os.path.abspath(source.path) for source in self.sources}  # noqa: PTH100
        if len(paths) < len(self.sources):
            raise ValueError(
                "data.sources names the same path twice: give it once, with its whole weight"
            )
        return self
