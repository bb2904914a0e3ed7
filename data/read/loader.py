"""Sample numbers -> this rank's micro-batches of tensors.

A global batch is `global_batch_size` consecutive samples. Data-parallel rank r takes the r-th
of `dp_size` equal contiguous pieces, so every data-parallel size trains on the same samples. In a
phase of shorter sequences each sample is cut into several: the batch has as many tokens as ever.

Shape legend: B = micro_batch_size x pieces, T = seq_len / pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from triax.common.errors import UserError
from triax.common.tokens import IGNORE_INDEX
from triax.data.read.conversations import Conversations
from triax.data.read.prefetch import prefetched
from triax.data.read.sampler import Location, Sampler
from triax.data.read.source import Source, Window
from triax.models.batch import Batch

_STORE_THREADS = 16
"""Samples of a micro-batch that are asked of stores at once: each answer takes long to come."""


def make_batch(
    windows: Sequence[Window],
    *,
    mask_documents: bool,
    pin_memory: bool,
    num_real: int | None = None,
    weighted: bool = False,
) -> Batch:
    """Stack windows of equal length into a micro-batch on the host.

    Args:
        mask_documents: keep document ids (int32, counted from 0 in each row), and ignore the
            targets that belong to another document than their position.
        pin_memory: put the tensors in page-locked memory, for asynchronous copies to the GPU.
        num_real: only the first so many rows carry targets; None means all.
        weighted: some windows may have weights: the batch has them, and positions.

    Padding is no target, so it weighs nothing.
    """
    tokens = np.stack([window.tokens for window in windows])
    inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    for row, window in enumerate(windows):
        if window.num_tokens is not None:
            targets[row, window.num_tokens - 1 :] = IGNORE_INDEX
    targets[num_real if num_real is not None else len(windows) :] = IGNORE_INDEX
    document_ids_BT = None
    if mask_documents:
        documents = np.stack([window.document_ids for window in windows])
        targets[documents[:, 1:] != documents[:, :-1]] = IGNORE_INDEX
        document_ids_BT = torch.from_numpy(documents[:, :-1].copy())
    batch = Batch(torch.from_numpy(inputs), torch.from_numpy(targets), document_ids_BT)
    if weighted:
        batch = _weighted(batch, windows)
    return batch.pin_memory() if pin_memory else batch


def _weighted(batch: Batch, windows: Sequence[Window]) -> Batch:
    """The batch with its windows' weights, positions, and what a reference model makes of them."""
    ones = np.ones(batch.tokens_BT.shape[1] + 1, np.float32)
    weights_BT = np.stack([ones if w.weights is None else w.weights for w in windows])[:, 1:].copy()
    counts = np.arange(ones.size)
    positions = np.stack([counts if w.positions is None else w.positions for w in windows])
    references = [window.reference for window in windows if window.reference is not None]
    return replace(
        batch,
        targets_BT=batch.targets_BT.masked_fill(torch.from_numpy(weights_BT == 0), IGNORE_INDEX),
        positions_BT=torch.from_numpy(positions[:, :-1].copy()),
        weights_BT=torch.from_numpy(weights_BT),
        reference_BT=torch.from_numpy(np.stack(references)[:, :-1].copy()) if references else None,
    )


def are_weighted(sources: Iterable[Source]) -> bool:
    """Whether batches of these sources have weights."""
    return any(isinstance(source, Conversations) for source in sources)


class Loader:
    """Reads one rank's part of any global batch. It has no state: a sample number says all."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        sampler: Sampler,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        mask_documents: bool,
        prefetch: int = 2,
        pin_memory: bool = False,
        before_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Check that the batch can be shared out.

        Args:
            sources: by the names that the sampler uses.
            global_batch_size, micro_batch_size: in samples.
            prefetch: global batches that `iterate` reads ahead in a thread; 0 means no thread.
            before_batch: called before each global batch of `iterate`; what it raises ends the
                reading, as data that can't be read does.

        Raises:
            UserError: the global batch is not a whole number of micro-batches on each rank.
        """
        assert 0 <= dp_rank < dp_size, (dp_rank, dp_size)
        if global_batch_size % (micro_batch_size * dp_size):
            raise UserError(
                f"batch.global_batch_size = {global_batch_size} does not divide into micro-batches "
                f"of batch.micro_batch_size = {micro_batch_size} on {dp_size} data-parallel ranks; "
                f"make it a multiple of {micro_batch_size * dp_size}"
            )
        self._sources = dict(sources)
        self._weighted = are_weighted(self._sources.values())
        self._sampler = sampler
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._samples_per_rank = global_batch_size // dp_size
        self._first_sample = dp_rank * self._samples_per_rank
        self._mask_documents = mask_documents
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        self._before_batch = before_batch
        is_remote = any(source.is_remote for source in self._sources.values())
        self._pool = ThreadPoolExecutor(_STORE_THREADS, "triax-store") if is_remote else None

    def batch_at(self, cursor: int) -> list[Batch]:
        """This rank's micro-batches of the global batch that begins at sample `cursor`.

        Raises:
            UserError: the data holds a token outside the vocabulary.
        """
        first, num_pieces = cursor + self._first_sample, self.num_pieces(cursor)
        return [
            self._micro_batch(range(start, start + self._micro_batch_size), num_pieces)
            for start in range(first, first + self._samples_per_rank, self._micro_batch_size)
        ]

    def num_pieces(self, cursor: int) -> int:
        """Sequences that each sample is cut into, in the global batch that begins at `cursor`."""
        return self._sampler.num_pieces(cursor)

    def changes_at(self, cursor: int) -> bool:
        """Whether the global batch that begins at `cursor` is the first of another blend or length
        of sequences, the run's first one aside."""
        return self.changes_between(max(cursor - self._global_batch_size, 0), cursor)

    def changes_between(self, cursor: int, other: int) -> bool:
        """Whether another blend or length of sequences begins on the way."""
        return self._sampler.changes_between(cursor, other)

    def iterate(self, cursor: int, stop_cursor: int) -> Generator[list[Batch], None, None]:
        """`batch_at` for each global batch from `cursor` to `stop_cursor`, read ahead.

        Close the iterator (or exhaust it) to end its thread; what the thread raises is raised
        here. The span is whole global batches.
        """
        assert (stop_cursor - cursor) % self._global_batch_size == 0, (cursor, stop_cursor)
        cursors = range(cursor, stop_cursor, self._global_batch_size)
        return prefetched(map(self._next_batch, cursors), self._prefetch)

    def _next_batch(self, cursor: int) -> list[Batch]:
        self._before_batch()
        return self.batch_at(cursor)

    def _window(self, at: Location) -> Window:
        return self._sources[at.source].window(at.window)

    def _micro_batch(self, samples: range, num_pieces: int) -> Batch:
        locations = [self._sampler.locate(sample) for sample in samples]
        read = map if self._pool is None else self._pool.map
        samples_read = list(read(self._window, locations))
        windows = [piece for window in samples_read for piece in window.cut(num_pieces)]
        return make_batch(
            windows,
            mask_documents=self._mask_documents,
            pin_memory=self._pin_memory,
            weighted=self._weighted,
        )


def validation_batches(
    source: Source,
    num_sequences: int,
    *,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    mask_documents: bool,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This rank's share of a source's first `num_sequences` windows (or all, if it has fewer).

    Every rank gets equally many micro-batches of equal shape. Rows beyond the last sequence
    have only ignored targets, so loss sum and target count over all ranks depend on neither
    `dp_size` nor `micro_batch_size`.
    """
    num_sequences = min(num_sequences, source.num_windows)
    micro_batches_per_rank = -(-num_sequences // (dp_size * micro_batch_size))
    first = dp_rank * micro_batches_per_rank * micro_batch_size
    for number in range(micro_batches_per_rank):
        start = first + number * micro_batch_size
        indices = range(start, start + micro_batch_size)
        yield make_batch(
            [source.window(min(index, num_sequences - 1)) for index in indices],
            mask_documents=mask_documents,
            pin_memory=pin_memory,
            num_real=min(max(num_sequences - start, 0), micro_batch_size),
            weighted=are_weighted([source]),
        )
