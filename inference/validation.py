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
from triax.data.config import TooLong
from triax.data.prepare.token_bytes import text_bytes, token_bytes
from triax.data.read.identity import identify, recorded_validation
from triax.data.read.loader import validation_batches
from triax.data.read.opening import open_source
from triax.data.read.source import Source
from triax.inference.engine import evaluation_engine, recorded_precision
from triax.inference.load import ModelFolder, find_model
from triax.inference.team import Team
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

    def batches(self, part: int = 0, num_parts: int = 1) -> Iterator[Batch]:
        """All of them or a part, on the host; rows that fill up a batch have no targets."""
        return validation_batches(
            self.source,
            self.num_sequences,
            micro_batch_size=self.micro_batch_size,
            dp_rank=part,
            dp_size=num_parts,
            mask_documents=self.mask_documents,
        )

    def windows(self, part: int, num_parts: int) -> range:
        """The windows that the rows of a part's batches are; rows beyond them have no targets."""
        rows = -(-self.num_sequences // (num_parts * self.micro_batch_size)) * self.micro_batch_size
        first = min(part * rows, self.num_sequences)
        return range(first, min(first + rows, self.num_sequences))

    def num_bytes(self, folder: ModelFolder) -> int | None:
        """Bytes of the targets' text; None where the model's tokenizer isn't there to tell, or some
        targets count more than others."""
        if folder.tokenizer_folder is None or not Path(folder.tokenizer_folder).exists():
            return None
        sizes = token_bytes(folder.tokenizer(), folder.config.vocab_size)
        return text_bytes(sizes, self.batches())

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


def validate(checkpoint: str, sequences: Sequences, team: Team | None = None) -> Validation:
    """A checkpoint's loss, and that of the sequences which its run validates on.

    Raises:
        UserError: the checkpoint or the data can't be used.
    """
    folder = find_model(checkpoint)
    reading = read(folder, sequences)
    own = _num_own_sequences(folder, reading)
    at = (0, 1) if team is None else team.data_place
    with evaluation_engine(folder, reading.seq_len, sequences.compute, team) as engine:

        def evaluated(part: Reading) -> Evaluation:
            found = _evaluate(engine, part.batches(*at))
            return found._replace(num_bytes=part.num_bytes(folder))

        return Validation(
            folder.path,
            reading,
            recorded_precision(folder, sequences.compute).compute,
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


def read(folder: ModelFolder, sequences: Sequences) -> Reading:
    """The sequences for this model.

    Raises:
        UserError: there are none, or they don't fit the model.
    """
    seq_len = sequences.seq_len or folder.seq_len
    if seq_len is None:
        raise UserError(f"{folder.path}: doesn't say how it was trained: give --seq-len N")
    folder.refuse_longer(seq_len)
    source = open_source(
        sequences.prefix,
        seq_len,
        folder.config.vocab_size,
        too_long=_trained_too_long(folder.record),
    )
    mask = sequences.mask_documents
    return Reading(
        source,
        sequences.prefix,
        seq_len,
        min(sequences.limit or source.num_windows, source.num_windows),
        sequences.micro_batch_size or _trained_micro_batch_size(folder.record),
        _trained_masked(folder.record) if mask is None else mask,
    )


def _trained_masked(record: Mapping[str, Any]) -> bool:
    """Whether the run masks documents, as configs do that don't say."""
    data = recorded_table(recorded_table(record, "config"), "data")
    return data.get("mask_documents") is not False


def _trained_too_long(record: Mapping[str, Any]) -> TooLong:
    """What the run does to long conversations: that decides which ones share a window."""
    data = recorded_table(recorded_table(record, "config"), "data")
    return "truncate" if data.get("too_long") == "truncate" else "drop"


def _trained_micro_batch_size(record: Mapping[str, Any]) -> int:
    """The run's, so that sums come out as there; 8 where the record doesn't say."""
    size = recorded_table(recorded_table(record, "config"), "batch").get("micro_batch_size")
    return size if isinstance(size, int) and size > 0 else 8


def _num_own_sequences(folder: ModelFolder, reading: Reading) -> int | None:
    """How many sequences the run's own validations take; None where this isn't their data, or it
    is seen in another way, or they tell another loss, that of preferences."""
    config = recorded_table(folder.record, "config")
    if recorded_table(config, "objective").get("kind") == "dpo":
        return None
    trained = (folder.seq_len, _trained_masked(folder.record))
    if (reading.seq_len, reading.mask_documents) != trained:
        return None
    path = recorded_table(config, "data").get("validation")
    known = recorded_validation(folder.record)
    if known is not None:
        is_own = known.shards == identify(reading.prefix, reading.source).shards
    else:
        is_own = isinstance(path, str) and same_path(Path(path), Path(reading.prefix))
    batches = recorded_table(config, "eval").get("batches")
    size = recorded_table(config, "batch").get("global_batch_size")
    if not (is_own and isinstance(batches, int) and isinstance(size, int) and batches * size > 0):
        return None
    return min(batches * size, reading.source.num_windows)
