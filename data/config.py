"""The `[data]` section: which tokens a run reads, and how they were made. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from triax.common.paths import PathField, absolute
from triax.common.quantities import CountField, SizeField
from triax.common.section import NonNegativeFp32, PositiveFp32, Section
from triax.data.remote.cache import DEFAULT_BYTES

SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end-of-text token."""


TooLong = Literal["drop", "truncate"]


class SourceConfig(Section):
    """One source of samples in the blend."""

    path: PathField
    """A prefix: `PATH.bin` and `PATH.idx`, or all of `PATH-00000.bin`, `PATH-00001.bin`, ...; here
    or in a store (`s3://`, `gs://`, `hf://`, `https://`)."""
    weight: PositiveFp32 = 1.0
    """This source's share of the samples, relative to the other weights."""
    max_epochs: float | None = Field(None, gt=0, le=1_000_000)
    """How often it may be read over the whole run; then it leaves the blend, and the other sources
    share its place by their weights."""


class PhaseConfig(Section):
    """A part of the run in which sequences have a length and sources weights of their own."""

    tokens: CountField | None = None
    """How many are read in it, rounded down to whole steps of all phases so far. The last phase has
    none: it goes on to the end."""
    seq_len: int | None = Field(None, gt=0)
    """Tokens of a sequence, of which `data.seq_len` is a multiple (and the default): a step has as
    many tokens in all phases, in more and shorter sequences."""
    weights: tuple[NonNegativeFp32, ...] | None = None
    """Of `data.sources`, in their order; 0 leaves one out. By default their own."""


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

    independent: ClassVar[frozenset[str]] = frozenset(
        {"mask_documents", "verify", "prefetch", "cache_dir", "cache_size"}
    )
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
    phases: tuple[PhaseConfig, ...] = ()
    """One after another from the run's begin; none is one phase with the section's own values."""
    packing: Literal["stream", "best-fit"] = "stream"
    """`stream` cuts a shard's tokens, one document behind the other, into samples; `best-fit` puts
    whole documents together, cuts only those that are longer than a sample, and pads the rest."""
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
    cache_dir: PathField | None = None
    """Folder for what is read of sources in stores, by default `$XDG_CACHE_HOME/triax/remote`: on a
    local disk of each machine."""
    cache_size: SizeField = DEFAULT_BYTES
    """Most bytes of tokens that are kept there, as "20GB"."""

    @model_validator(mode="after")
    def _distinct(self) -> DataConfig:
        paths = {absolute(source.path) for source in self.sources}
        if len(paths) < len(self.sources):
            raise ValueError(
                "data.sources names the same path twice: give it once, with its whole weight"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> DataConfig:
        for number, phase in enumerate(self.phases):
            self._check_phase(number, phase)
        for number, source in enumerate(self.sources):
            if self.phases and not any(self.weights_in(phase)[number] for phase in self.phases):
                raise ValueError(
                    f"data.phases give {source.path} the weight 0 everywhere: leave it out"
                )
        return self

    def _check_phase(self, number: int, phase: PhaseConfig) -> None:
        name, is_last = f"data.phases.{number}", number == len(self.phases) - 1
        if phase.tokens is None and not is_last:
            raise ValueError(f"{name}.tokens: only the last phase may go on to the run's end")
        if self.seq_len % self.seq_len_in(phase):
            raise ValueError(
                f"{name}.seq_len: data.seq_len = {self.seq_len}, the longest, must be a multiple "
                f"of it, got {phase.seq_len}"
            )
        if self.packing == "best-fit" and self.seq_len_in(phase) < self.seq_len:
            raise ValueError(
                f"{name}.seq_len: shorter sequences would cut the documents that data.packing = "
                '"best-fit" keeps whole; use "stream", or leave this out'
            )
        weights = self.weights_in(phase)
        if len(weights) != len(self.sources):
            raise ValueError(
                f"{name}.weights: one for each of the {len(self.sources)} data.sources is "
                f"expected, got {len(weights)}"
            )
        if not any(weights):
            raise ValueError(f"{name}.weights: all are 0, so nothing is read; make one positive")

    def weights_in(self, phase: PhaseConfig) -> tuple[float, ...]:
        """Of the sources, in a phase."""
        own = tuple(source.weight for source in self.sources)
        return own if phase.weights is None else phase.weights

    def seq_len_in(self, phase: PhaseConfig) -> int:
        """Tokens of a sequence, in a phase."""
        return phase.seq_len or self.seq_len
