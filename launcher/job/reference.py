"""What the reference model makes of a run's pairs: computed once, before the first step.

The reference is the model that the run starts from. The log-probability of every answer lies in
the run's folder from then on, under a digest of the data and beside one of that model, so that a
run that goes on needs neither. What was computed before an interrupt isn't computed again, unless
the run begins anew with another model.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from triax.checkpoint.folders import CheckpointInfo
from triax.common.errors import UserError
from triax.common.files import make_folder, read_regular, replace_bytes, write_errors
from triax.data.read.conversations import Conversations
from triax.data.read.identity import Identity
from triax.data.read.loader import make_batch
from triax.data.read.source import Source
from triax.launcher.job.checkpoints import Start
from triax.launcher.job.data import Sources
from triax.launcher.job.initial_weights import Initial, find_initial_weights, load_initial_weights
from triax.launcher.job.job import Job
from triax.parallel.agreement import on_first
from triax.parallel.collectives import reduce_objects
from triax.parallel.engine import Engine

FOLDER = "reference"
_MOST_BYTES = 1 << 34
_BATCHES_AT_ONCE = 16
"""Micro-batches of each process between two looks at the clock's and the disk's needs."""
_DIGEST_BYTES = 16
Values = NDArray[np.float32]


def with_reference(job: Job, sources: Sources, start: Start, engine: Engine) -> Sources:
    """The sources, whose pairs know what the reference model makes of them. Collective.

    The engine has the weights of the reference afterwards if something had to be computed.

    Args:
        engine: has the weights that a new run begins with; where one goes on, those of a new
            engine, to which noise may be added.

    Raises:
        UserError: what is there is damaged, or the model that the run started from is gone.
    """
    if job.config.objective.kind != "dpo":
        return sources
    validation = [] if sources.validation is None else [sources.validation]
    read = [*sources.sources, *validation, *sources.others.values()]
    tables = [
        _known(job, source, identity, start.initial)
        for source, identity in zip(read, sources.all_identities, strict=True)
    ]
    if any(not each.is_whole for each in tables):
        model = _load_reference(job, start, engine, tables)
        for each in tables:
            each.model = model
            _compute(job, engine, each)
    told: Iterator[Source] = (each.source.with_reference(each.values) for each in tables)
    return replace(
        sources,
        sources=[next(told) for _ in sources.sources],
        validation=next(told) if validation else None,
        others=dict(zip(sources.others, told, strict=True)),
    )


@dataclass
class _Table:
    """What is known of one source."""

    source: Conversations
    path: Path
    values: Values
    """(num_documents,); NaN where nothing has been computed."""
    model: bytes = bytes(_DIGEST_BYTES)
    """Digest of the reference's checkpoint; zeros where nothing has been computed."""

    @property
    def missing(self) -> list[int]:
        """The windows that hold something of which nothing is known."""
        source = self.source
        return [
            number
            for number in range(source.num_windows)
            if np.isnan(self.values[source.documents_of(number)]).any()
        ]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def _load_reference(job: Job, start: Start, engine: Engine, tables: list[_Table]) -> bytes:
    """Let the engine have the reference's weights; returns their digest."""
    if start.initial is not None:
        return start.initial.digest
    initial = find_initial_weights(
        start.store, job.config, job.processes.control_group, lambda _: None
    )
    assert initial is not None, "the checks ask for it"
    model = initial.digest
    is_other = any(each.model not in (model, bytes(_DIGEST_BYTES)) for each in tables)
    # Adapters that go on would stand beside what is read here.
    if is_other or _digest(start.base) != _digest(initial.base):
        raise UserError(
            f"checkpoint.init_from: {initial.path} isn't what the run started from, which is its "
            "reference, and not all of the data has met that one; name that checkpoint itself"
        )
    load_initial_weights(start.store, initial, engine, job.config)
    return model


def _digest(base: CheckpointInfo | None) -> str | None:
    return None if base is None or base.manifest is None else base.manifest.digest


def _known(job: Job, source: Source, identity: Identity, initial: Initial | None) -> _Table:
    """What the run's folder knows of a source.

    Args:
        initial: what a new run begins with; of another model nothing is known then.
    """
    if not isinstance(source, Conversations) or source.group_size != 2:
        raise UserError(
            f'{identity.path}: holds no pairs, of which objective.kind = "dpo" learns; make them '
            "with `triax data conversations --pairs`"
        )
    path = job.directory.path / FOLDER / f"{_name(job, source, identity)}.npy"
    model, values = on_first(lambda: _read(path, source.num_documents), job.processes.control_group)
    if initial is not None and model != initial.digest:
        return _Table(source, path, np.full_like(values, np.nan))
    return _Table(source, path, values, model)


def _name(job: Job, source: Source, identity: Identity) -> str:
    """Of the data and of how it is cut; the model is the run's own."""
    data = job.config.data
    parts = (identity.key, data.seq_len, data.too_long, source.num_windows)
    return xxhash.xxh3_64_hexdigest(repr(parts).encode())


def _read(path: Path, num_documents: int) -> tuple[bytes, Values]:
    """The digest of the model, and what is known of it."""
    try:
        content = read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        return bytes(_DIGEST_BYTES), np.full(num_documents, np.nan, np.float32)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    num_bytes = _DIGEST_BYTES + num_documents * np.dtype(np.float32).itemsize
    if digest != xxhash.xxh3_128_digest(rest) or len(rest) != num_bytes:
        raise UserError(
            f"{path}: damaged: its checksum is another one; delete it, and the reference model's "
            "log-probabilities are computed anew"
        )
    return rest[:_DIGEST_BYTES], np.frombuffer(rest[_DIGEST_BYTES:], np.float32).copy()


def _write(table: _Table) -> None:
    make_folder(table.path.parent)
    content = table.model + table.values.tobytes()
    with write_errors(table.path):
        replace_bytes(table.path, xxhash.xxh3_128_digest(content) + content, fsync=True)


def _compute(job: Job, engine: Engine, table: _Table) -> None:
    """Fill in what is missing, some batches at a time; each is saved."""
    missing = table.missing
    if not missing:
        return
    job.say(f"reference log-probabilities of {len(missing):,} windows, kept in {table.path}")
    num_ranks = job.layout.data_parallel
    rank = job.layout.data_rank(job.processes.environment.rank)
    size = job.config.batch.micro_batch_size
    at_once = size * num_ranks * _BATCHES_AT_ONCE
    for begin in range(0, len(missing), at_once):
        job.watchdog.beat("computing reference log-probabilities", 0)
        windows = missing[begin : begin + at_once]
        per_rank = -(-len(windows) // (size * num_ranks)) * size
        own = windows[rank * per_rank : (rank + 1) * per_rank]
        found = dict(_answers(engine, table.source, own, per_rank, size))
        answers = reduce_objects(found, operator.or_, job.processes.control_group)
        for document, value in answers.items():
            table.values[document] = value
        on_first(partial(_write, table), job.processes.control_group)


def _answers(
    engine: Engine, source: Conversations, windows: list[int], num_rows: int, micro_batch_size: int
) -> Iterator[tuple[int, float]]:
    """The log-probability of each answer in these windows, by its number.

    Args:
        num_rows: of all processes alike; what isn't there is filled up.
    """
    padded = [*windows, *[0] * (num_rows - len(windows))]
    groups = [
        padded[first : first + micro_batch_size] for first in range(0, num_rows, micro_batch_size)
    ]
    batches = [
        make_batch(
            [source.window(number) for number in group],
            mask_documents=True,
            pin_memory=False,
            weighted=True,
        )
        for group in groups
    ]
    for group, batch, log_probs_BT in zip(groups, batches, engine.log_probs(batches), strict=True):
        assert batch.weights_BT is not None and batch.document_ids_BT is not None
        weights_BT = batch.weights_BT.where(batch.is_target_BT, 0).double()
        weighed_BT = (weights_BT * log_probs_BT.cpu()).numpy()
        for row, number in enumerate(group):
            documents = source.documents_of(number)
            ids = batch.document_ids_BT[row].numpy()
            sums = np.bincount(ids, weighed_BT[row], len(documents) + 1)
            yield from zip(documents.tolist(), sums.tolist(), strict=False)
