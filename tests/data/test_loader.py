"""Batches: the same samples at every data-parallel size, documents masked, prefetched or not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.common.tokens import IGNORE_INDEX
from triax.data.read.loader import Loader, make_batch, validation_batches
from triax.data.read.sampler import Phase, Sampler
from triax.data.read.shards import ShardWriter
from triax.data.read.source import Source, Window
from triax.models.batch import Batch

SEQ_LEN = 8
VOCAB_SIZE = 5_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Two sources whose tokens are all different, so a window is known by its first token."""
    folder = tmp_path_factory.mktemp("sources")
    generator = np.random.default_rng(0)
    first = 0
    for name, num_tokens in (("web", 1_000), ("code", 300)):
        stream = np.arange(first, first + num_tokens)
        first += num_tokens
        with ShardWriter(folder / name, np.dtype("<u2")) as writer:
            while stream.size:
                length = int(generator.integers(1, 20))
                writer.add_document(stream[:length])
                stream = stream[length:]
    return {name: Source.open(folder / name, SEQ_LEN, VOCAB_SIZE) for name in ("web", "code")}


def make_loader(sources: dict[str, Source], **changes: Any) -> Loader:
    phases = [Phase(0, (("web", 0.8), ("code", 0.2)))]
    num_windows = {name: source.num_windows for name, source in sources.items()}
    arguments: dict[str, Any] = {
        "global_batch_size": 12,
        "micro_batch_size": 1,
        "dp_rank": 0,
        "dp_size": 1,
        "mask_documents": True,
    }
    return Loader(sources, Sampler(7, phases, num_windows), **(arguments | changes))


def rows(batches: list[Batch]) -> torch.Tensor:
    """Inputs, targets and document ids side by side, one row a sample."""
    parts = [
        torch.cat([batch.tokens_BT, batch.targets_BT, batch.document_ids_BT.long()], dim=1)
        for batch in batches
        if batch.document_ids_BT is not None
    ]
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("dp_size", "micro_batch_size"), [(1, 12), (2, 3), (3, 2), (4, 1), (12, 1)]
)
@pytest.mark.parametrize("cursor", [0, 12, 9_995, 10**15])
def test_every_dp_size_reads_the_same_samples_in_the_same_order(
    sources: dict[str, Source], dp_size: int, micro_batch_size: int, cursor: int
) -> None:
    batches: list[Batch] = []
    for dp_rank in range(dp_size):
        own = make_loader(
            sources, dp_rank=dp_rank, dp_size=dp_size, micro_batch_size=micro_batch_size
        ).batch_at(cursor)
        assert len(own) == 12 // dp_size // micro_batch_size
        assert all(batch.tokens_BT.shape == (micro_batch_size, SEQ_LEN) for batch in own)
        batches += own
    assert torch.equal(rows(batches), rows(make_loader(sources).batch_at(cursor)))


def test_samples_are_those_of_the_sampler(sources: dict[str, Source]) -> None:
    num_windows = {name: source.num_windows for name, source in sources.items()}
    sampler = Sampler(7, [Phase(0, (("web", 0.8), ("code", 0.2)))], num_windows)
    (batch,) = make_loader(sources, micro_batch_size=12, mask_documents=False).batch_at(24)
    for row, sample in enumerate(range(24, 36)):
        at = sampler.locate(sample)
        window = sources[at.source].window(at.window)
        assert batch.tokens_BT[row].tolist() == window.tokens[:-1].tolist()
        assert batch.targets_BT[row].tolist() == window.tokens[1:].tolist()
    assert batch.document_ids_BT is None


windows = st.lists(
    st.tuples(
        st.lists(st.integers(0, 99), min_size=6, max_size=6),
        st.lists(st.integers(0, 2), min_size=6, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(windows=windows, mask_documents=st.booleans())
def test_documents_are_masked_as_in_a_naive_loop(
    windows: list[tuple[list[int], list[int]]], mask_documents: bool
) -> None:
    batch = make_batch(
        [Window(np.array(t), np.cumsum(steps, dtype=np.int32)) for t, steps in windows],
        mask_documents=mask_documents,
        pin_memory=False,
    )
    for row, (tokens, steps) in enumerate(windows):
        owners = [sum(steps[: t + 1]) for t in range(6)]
        for t in range(5):
            crosses = mask_documents and owners[t + 1] != owners[t]
            assert batch.tokens_BT[row, t] == tokens[t]
            assert batch.targets_BT[row, t] == (IGNORE_INDEX if crosses else tokens[t + 1])
            if batch.document_ids_BT is not None:
                assert batch.document_ids_BT[row, t] == owners[t]
    assert (batch.document_ids_BT is not None) == mask_documents
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64
    if batch.document_ids_BT is not None:
        assert batch.document_ids_BT.dtype == torch.int32


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_iterating_is_batch_at_for_every_cursor(sources: dict[str, Source], prefetch: int) -> None:
    loader = make_loader(sources, prefetch=prefetch, micro_batch_size=3, dp_rank=1, dp_size=2)
    read = [rows(batches) for batches in loader.iterate(24, 120)]
    assert len(read) == 8
    for number, batches in enumerate(read):
        assert torch.equal(batches, rows(loader.batch_at(24 + 12 * number)))
    assert "triax-prefetch" not in [thread.name for thread in threading.enumerate()]
    assert list(loader.iterate(24, 24)) == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_bad_data_reaches_the_consumer(tmp_path: Path, prefetch: int) -> None:
    with ShardWriter(tmp_path / "web", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(SEQ_LEN * 12 + 1))
    source = Source.open(tmp_path / "web", SEQ_LEN, vocab_size=SEQ_LEN * 6)
    sampler = Sampler(0, [Phase(0, (("web", 1.0),))], {"web": source.num_windows})
    loader = Loader(
        {"web": source},
        sampler,
        global_batch_size=1,
        micro_batch_size=1,
        dp_rank=0,
        dp_size=1,
        mask_documents=True,
        prefetch=prefetch,
    )
    with pytest.raises(UserError, match=r"model\.vocab_size = 48"):
        list(loader.iterate(0, 12))
    assert "triax-prefetch" not in [thread.name for thread in threading.enumerate()]


def test_a_batch_that_does_not_divide_is_refused(sources: dict[str, Source]) -> None:
    with pytest.raises(UserError, match=r"batch\.global_batch_size = 12 .* multiple of 10"):
        make_loader(sources, micro_batch_size=5, dp_size=2)


@settings(deadline=None, max_examples=60)
@given(
    num_sequences=st.integers(1, 60),
    dp_size=st.integers(1, 5),
    micro_batch_size=st.integers(1, 5),
    mask_documents=st.booleans(),
)
def test_validation_depends_on_no_layout(
    sources: dict[str, Source],
    num_sequences: int,
    dp_size: int,
    micro_batch_size: int,
    mask_documents: bool,
) -> None:
    source = sources["code"]
    ranks = [
        list(
            validation_batches(
                source,
                num_sequences,
                micro_batch_size=micro_batch_size,
                dp_rank=dp_rank,
                dp_size=dp_size,
                mask_documents=mask_documents,
            )
        )
        for dp_rank in range(dp_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for own in ranks for batch in own]
    assert {batch.tokens_BT.shape for batch in batches} == {(micro_batch_size, SEQ_LEN)}
    tokens = torch.cat([batch.tokens_BT for batch in batches])
    targets = torch.cat([batch.targets_BT for batch in batches])

    num_real = min(num_sequences, source.num_windows)
    expected = make_batch(
        [source.window(index) for index in range(num_real)],
        mask_documents=mask_documents,
        pin_memory=False,
    )
    assert torch.equal(tokens[:num_real], expected.tokens_BT)
    assert torch.equal(targets[:num_real], expected.targets_BT)
    assert (targets[num_real:] == IGNORE_INDEX).all()


@pytest.mark.gpu
def test_pinned_on_request(sources: dict[str, Source]) -> None:
    loader = make_loader(sources, pin_memory=True)
    (batches,) = loader.iterate(0, 12)
    assert all(batch.tokens_BT.is_pinned() and batch.targets_BT.is_pinned() for batch in batches)
    assert torch.equal(rows(batches), rows(make_loader(sources).batch_at(0)))
