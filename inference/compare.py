"""Checkpoints compared on the same sequences, document by document.

Shape letters: B sequences, T tokens, R checkpoints, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triax.common.errors import UserError
from triax.data.prepare.tokenizer import tokenizer_fingerprint
from triax.inference.engine import evaluation_engine
from triax.inference.load import ModelFolder, find_model
from triax.inference.team import Team
from triax.inference.validation import Reading, Sequences, read
from triax.models.batch import Batch
from triax.parallel.evaluation import Evaluation, mean_loss

_BATCHES_AT_ONCE = 256
_NUM_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A checkpoint's mean loss minus the first one's, in nats, with a 95% confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """One checkpoint's figures."""

    checkpoint: Path
    evaluation: Evaluation
    difference: Difference | None
    """None for the first."""


@dataclass(frozen=True)
class Comparison:
    """Checkpoints on the same sequences."""

    reading: Reading
    num_documents: int
    """Those with a target."""
    compared: list[Compared]


def compare(
    checkpoints: Sequence[str], sequences: Sequences, team: Team | None = None
) -> Comparison:
    """The losses of several checkpoints on the same targets, one checkpoint in memory at a time.

    A target counts as much as it weighs in the data. The intervals are of a bootstrap over
    documents, since tokens of one document are alike: each resample draws as many documents as
    there are, with replacement, the same for all checkpoints (paired), and divides their summed
    difference by what their targets weigh; the interval's ends are the 2.5th and 97.5th percentile.
    The draws are always the same.

    Raises:
        UserError: a checkpoint or the data can't be used, or they read the data in other ways.
    """
    team = team or Team.alone()
    measured: list[_Measured] = []
    readings, known = [], []
    for checkpoint in checkpoints:
        folder = find_model(checkpoint)
        readings.append(read(folder, sequences))
        known.append((folder.path, _tokenizer(folder)))
        _refuse_different(readings, known)
        measured.append(_measure(folder, readings[0], sequences.compute, team))
        num_bytes = readings[0].num_bytes(folder)
    losses_RD = np.stack([one.losses_D for one in measured])
    weights_D = measured[0].weights_D
    seen = weights_D > 0
    differences = _differences(losses_RD[:, seen], weights_D[seen])
    compared = [
        Compared(path, one.evaluation()._replace(num_bytes=num_bytes), difference)
        for one, (path, _), difference in zip(measured, known, differences, strict=True)
    ]
    return Comparison(readings[0], int(seen.sum()), compared)


@dataclass(frozen=True)
class _Measured:
    """What a checkpoint makes of the documents."""

    losses_D: NDArray[np.float64]
    """Summed over each one's targets, each times its own weight."""
    weights_D: NDArray[np.float64]
    num_targets: int

    def evaluation(self) -> Evaluation:
        return mean_loss(float(self.losses_D.sum()), self.num_targets, float(self.weights_D.sum()))


def _tokenizer(folder: ModelFolder) -> str | None:
    """The fingerprint of the checkpoint's tokenizer, None where it isn't there."""
    tokenizer = folder.tokenizer_folder
    return tokenizer_fingerprint(tokenizer) if tokenizer and Path(tokenizer).exists() else None


def _refuse_different(
    readings: Sequence[Reading], known: Sequence[tuple[Path, str | None]]
) -> None:
    first, last = readings[0], readings[-1]
    if (first.seq_len, first.mask_documents) != (last.seq_len, last.mask_documents):
        raise UserError(
            f"{known[0][0]} reads {first.describe()}, but {known[-1][0]} reads {last.describe()}: "
            "give --seq-len and --document-mask for all"
        )
    if None not in (known[0][1], known[-1][1]) and known[0][1] != known[-1][1]:
        raise UserError(
            f"{known[0][0]} and {known[-1][0]} have other tokenizers, so the same shards can't be "
            "text to both: evaluate each on its own data and compare bits per byte"
        )


def _measure(folder: ModelFolder, reading: Reading, compute: str | None, team: Team) -> _Measured:
    num_documents = reading.source.num_documents
    losses_D, weights_D, num_targets = np.zeros(num_documents), np.zeros(num_documents), 0
    part, num_parts = team.data_place
    batches, windows = reading.batches(part, num_parts), iter(reading.windows(part, num_parts))
    with evaluation_engine(folder, reading.seq_len, compute, team) as engine:
        while group := list(islice(batches, _BATCHES_AT_ONCE)):
            for batch, log_probs_BT in zip(group, engine.log_probs(group), strict=True):
                is_target_BT = batch.is_target_BT.numpy()
                chosen = _documents(reading, batch, windows)[is_target_BT]
                weights = np.ones(chosen.size)
                if batch.weights_BT is not None:
                    weights = batch.weights_BT.double().numpy()[is_target_BT]
                values = log_probs_BT.double().cpu().numpy()[is_target_BT]
                losses_D -= np.bincount(chosen, values * weights, num_documents)
                weights_D += np.bincount(chosen, weights, num_documents)
                num_targets += chosen.size
    counts = team.summed(np.array([num_targets]))
    return _Measured(team.summed(losses_D), team.summed(weights_D), int(counts[0]))


def _documents(reading: Reading, batch: Batch, windows: Iterator[int]) -> NDArray[np.int64]:
    """The number of each target's document, (B, T); of no meaning in rows that fill up."""
    documents_BT = np.zeros(batch.targets_BT.shape, np.int64)
    for row, window in zip(documents_BT, windows, strict=False):
        row[:] = reading.source.documents(window)[1:]
    return documents_BT


def _differences(
    losses_RD: NDArray[np.float64], weights_D: NDArray[np.float64]
) -> list[Difference | None]:
    """To the first checkpoint."""
    apart_RD = losses_RD[1:] - losses_RD[0]
    num_documents = weights_D.size
    if num_documents == 0:
        return [None] * len(losses_RD)
    draws = np.random.default_rng(0)
    means = np.empty((_NUM_RESAMPLES, len(apart_RD)))
    for resample in means:
        drawn_D = draws.integers(num_documents, size=num_documents)
        resample[:] = apart_RD[:, drawn_D].sum(1) / weights_D[drawn_D].sum()
    edge = (1 - _CONFIDENCE) / 2
    lows, highs = np.quantile(means, [edge, 1 - edge], axis=0)
    found = apart_RD.sum(1) / weights_D.sum()
    ends = zip(found, lows, highs, strict=True)
    return [None, *(Difference(float(mean), float(low), float(high)) for mean, low, high in ends)]
