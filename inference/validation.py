"""The loss of a checkpoint on prepared data, as the engine evaluates it in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from triax.checkpoint.run_folder import recorded_table
from triax.common.errors import UserError
from triax.common.paths import same_path
from triax.data.prepare.token_bytes import target_bytes, token_bytes
from triax.data.read.identity import identify, recorded_validation
from triax.data.read.loader import validation_batches
from triax.data.read.opening import open_source
from triax.data.read.source import Source
from triax.inference.engine import evaluation_engine, recorded_precision
from triax.inference.load import Loaded, load_checkpoint
from triax.models.batch import Batch
from triax.parallel.engine import Engine
from triax.parallel.evaluation import Evaluation, mean_loss

_BATCHES_AT_ONCE = 256


@dataclass(frozen=True)
class Sequences:
    """Which sequences of which data, and how they are seen; None: as in training."""

    prefix: str
    """Of the shards."""
    seq_len: int | None = None
    limit: int | None = None
    """Only the first so many."""
    micro_batch_size: int | None = None
    mask_documents: bool | None = None
    compute: str | None = None
    """As `precision.compute`."""


@dataclass(frozen=True)
class Reading:
    """The sequences as one model reads them."""

    source: Source
    prefix: str
    seq_len: int
    num_sequences: int
    micro_batch_size: int
    mask_documents: bool

    def batches(self) -> Iterator[Batch]:
        """All of them, on the host; rows that fill up the last batch have no targets."""
        return validation_batches(
            self.source,
            self.num_sequences,
            micro_batch_size=self.micro_batch_size,
            dp_rank=0,
            dp_size=1,
            mask_documents=self.mask_documents,
        )

    def num_bytes(self, loaded: Loaded) -> int | None:
        """Bytes of the targets' text; None where the model's tokenizer isn't there to tell."""
        if loaded.tokenizer_folder is None or not Path(loaded.tokenizer_folder).exists():
            return None
        sizes = token_bytes(loaded.tokenizer(), loaded.model.config.vocab_size)
        return sum(target_bytes(sizes, batch.targets_BT.numpy()) for batch in self.batches())

    def describe(self) -> str:
        """In words."""
        masked = "masked" if self.mask_documents else "not masked"
        length = f"{self.seq_len:,} tokens, documents {masked}"
        return f"{self.prefix}: {self.num_sequences:,} sequences of {length}"


@dataclass(frozen=True)
class Validation:
    """What a checkpoint's validation found."""

    checkpoint: Path
    reading: Reading
    compute: str
    evaluation: Evaluation
    own_sequences: int | None
    """How many of the sequences the run's own validations take; None where this isn't theirs."""
    own: Evaluation | None
    """Of those, where they aren't all."""


def validate(checkpoint: str, sequences: Sequences) -> Validation:
    """A checkpoint's loss, and that of the sequences which its run validates on.

    Raises:
        UserError: the checkpoint or the data can't be used.
    """
    loaded = load_checkpoint(checkpoint)
    reading = read(loaded, sequences)
    own = _num_own_sequences(loaded, reading)
    with evaluation_engine(loaded, reading.seq_len, sequences.compute) as engine:

        def evaluated(part: Reading) -> Evaluation:
            return _evaluate(engine, part.batches())._replace(num_bytes=part.num_bytes(loaded))

        return Validation(
            loaded.path,
            reading,
            recorded_precision(loaded, sequences.compute).compute,
            evaluated(reading),
            own,
            evaluated(replace(reading, num_sequences=own))
            if own is not None and own < reading.num_sequences
            else None,
        )


def _evaluate(engine: Engine, batches: Iterator[Batch]) -> Evaluation:
    """As `evaluate`, of batches that needn't fit into memory at once."""
    totals = [0.0, 0.0, 0.0]
    while group := list(islice(batches, _BATCHES_AT_ONCE)):
        sums = engine.evaluate(group)
        totals = [total + float(value) for total, value in zip(totals, sums, strict=True)]
    return mean_loss(totals[0], int(totals[1]), totals[2])


def read(loaded: Loaded, sequences: Sequences) -> Reading:
    """The sequences for this model.

    Raises:
        UserError: there are none, or they don't fit the model.
    """
    seq_len = sequences.seq_len or loaded.seq_len
    if seq_len is None:
        raise UserError(f"{loaded.path}: doesn't say how it was trained: give --seq-len N")
    loaded.refuse_longer(seq_len)
    source = open_source(sequences.prefix, seq_len, loaded.model.config.vocab_size)
    mask = sequences.mask_documents
    return Reading(
        source,
        sequences.prefix,
        seq_len,
        min(sequences.limit or source.num_windows, source.num_windows),
        sequences.micro_batch_size or _trained_micro_batch_size(loaded.record),
        _trained_masked(loaded.record) if mask is None else mask,
    )


def _trained_masked(record: Mapping[str, Any]) -> bool:
    """Whether the run masks documents, as configs do that don't say."""
    data = recorded_table(recorded_table(record, "config"), "data")
    return data.get("mask_documents") is not False


def _trained_micro_batch_size(record: Mapping[str, Any]) -> int:
    """The run's, so that sums come out as there; 8 where the record doesn't say."""
    size = recorded_table(recorded_table(record, "config"), "batch").get("micro_batch_size")
    return size if isinstance(size, int) and size > 0 else 8


def _num_own_sequences(loaded: Loaded, reading: Reading) -> int | None:
    """How many sequences the run's own validations take; None where this isn't their data, or it
    is seen in another way."""
    config = recorded_table(loaded.record, "config")
    trained = (loaded.seq_len, _trained_masked(loaded.record))
    if (reading.seq_len, reading.mask_documents) != trained:
        return None
    path = recorded_table(config, "data").get("validation")
    known = recorded_validation(loaded.record)
    if known is not None:
        is_own = known.shards == identify(reading.prefix, reading.source).shards
    else:
        is_own = isinstance(path, str) and same_path(Path(path), Path(reading.prefix))
    batches = recorded_table(config, "eval").get("batches")
    size = recorded_table(config, "batch").get("global_batch_size")
    if not (is_own and isinstance(batches, int) and isinstance(size, int) and batches * size > 0):
        return None
    return min(batches * size, reading.source.num_windows)
