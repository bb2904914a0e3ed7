"""The `[data]` section: which tokens a run reads, and how they were made. Imports no torch."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from triax.common.section import Section

SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end-of-text token."""


class SourceConfig(Section):
    """One source of samples in the blend."""

    path: str
    """A prefix: `PATH.bin` and `PATH.idx`, or all of `PATH-00000.bin`, `PATH-00001.bin`, ..."""
    weight: float = Field(1.0, gt=0)
    """This source's share of the samples, relative to the other weights."""


class PrepareConfig(Section):
    """How to make the tokenizer and the shards when they are missing at the run's start."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs, a `datasets` name, or `python-stdlib` (Python's own source)."""
    output: str
    """The folder for `tokenizer/`, `train` and `validation` shards."""
    vocab_size: int = Field(ge=SMALLEST_VOCABULARY)
    """Tokens of the tokenizer that is trained, the 256 bytes and `<|endoftext|>` among them."""
    validation_fraction: float = Field(0.01, gt=0, lt=1)
    text_field: str = "text"


class DataConfig(Section):
    """Which shards are read, in which shares, in windows of which length."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    validation: str | None = None
    """Prefix of the shards for validation; none means that no validation is run."""
    tokenizer: str | None = None
    """Folder that holds `tokenizer.json`; needed to show samples and to export."""
    end_of_text: str | None = Field(None, min_length=1)
    """The token that ends a document. By default the tokenizer's own `eos_token`, else
    `<|endoftext|>`, `<|end_of_text|>`, `</s>` or `<|eot_id|>`."""
    begin_of_text: str | None = Field(None, min_length=1)
    """A token that each document begins with; by default none does."""
    seq_len: PositiveInt
    mask_documents: bool = True
    """Tokens attend only within their own document, and no loss is taken across documents."""
    prepare: PrepareConfig | None = None
    prefetch: int = Field(2, ge=0)
    """Batches read ahead by a thread."""

    @model_validator(mode="after")
    def _distinct(self) -> DataConfig:
        paths = [source.path for source in self.sources]
        if len(set(paths)) < len(paths):
            raise ValueError(
                "data.sources names the same path twice: give it once, with its whole weight"
            )
        return self
