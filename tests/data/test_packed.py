"""Samples of whole documents, over real shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from triax.common.tokens import IGNORE_INDEX
from triax.data.config import DataConfig
from triax.data.read import packed
from triax.data.read.loader import make_batch
from triax.data.read.shards import ShardWriter
from triax.data.read.source import Source

documents = st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(lambda d: max(d) > 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/triax/packing"


def write(prefix: Path, lengths: list[int]) -> Path:
    """Documents whose tokens say which document and which place they are from."""
    with ShardWriter(prefix, np.dtype("<i4")) as writer:
        for number, length in enumerate(lengths):
            writer.add_document(number * 100 + np.arange(length))
    return prefix


@settings(deadline=None, max_examples=60)
@given(lengths=documents, seq_len=st.integers(1, 12), group=st.sampled_from([3, 1 << 20]))
def test_what_fits_is_whole_and_every_token_is_a_target_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int, group: int
) -> None:
    prefix = write(tmp_path_factory.mktemp("shards") / "train", lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "GROUP_DOCUMENTS", group)
        patch.setenv("XDG_CACHE_HOME", str(prefix.parent))
        source = Source.open(prefix, seq_len, vocab_size=10_000, packing="best-fit")
    targets, whole = [], set()
    for index in range(source.num_windows):
        window = source.window(index)
        assert window.tokens.shape == window.document_ids.shape == (seq_len + 1,)
        batch = make_batch([window], mask_documents=True, pin_memory=False)
        is_target = batch.targets_BT != IGNORE_INDEX
        targets += batch.targets_BT[is_target].tolist()
        # A target is the next token of the same document.
        assert torch.equal(batch.targets_BT[is_target], batch.tokens_BT[is_target] + 1)
        for piece in range(int(window.document_ids.max()) + 1):
            tokens = window.tokens[window.document_ids == piece]
            if len(tokens) == lengths[tokens[0] // 100]:
                whole.add(int(tokens[0]) // 100)
    expected = [n * 100 + place for n, length in enumerate(lengths) for place in range(1, length)]
    assert sorted(targets) == expected
    assert whole >= {n for n, length in enumerate(lengths) if 1 < length <= seq_len + 1}
    assert source.packed is not None
    assert source.packed.cut == sum(length > seq_len + 1 for length in lengths) / sum(
        length > 1 for length in lengths
    )


def test_a_group_s_border_changes_no_other_group() -> None:
    lengths = np.random.default_rng(0).integers(2, 9, 40).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "GROUP_DOCUMENTS", 20)
        both, first = packed.pack(starts, lengths, 8), packed.pack(starts[:20], lengths[:20], 8)
    assert [both.pieces(n) for n in range(first.num_windows)] == [
        first.pieces(n) for n in range(first.num_windows)
    ]


def test_the_index_is_kept_and_made_anew_if_it_is_damaged(tmp_path: Path, cache: Path) -> None:
    lengths = np.random.default_rng(1).integers(0, 40, 300).tolist()
    prefix = write(tmp_path / "train", lengths)

    def windows() -> list[list[int]]:
        source = Source.open(prefix, 16, vocab_size=10**6, packing="best-fit")
        return [source.window(index).tokens.tolist() for index in range(source.num_windows)]

    found = windows()
    [index] = cache.iterdir()
    content = index.read_bytes()
    for damaged in (content[:-8], b"", content[:80] + b"\xff" * 8 + content[88:]):
        index.write_bytes(damaged)
        assert windows() == found
        assert index.read_bytes() == content
    # Where it can't be kept, it is held.
    index.unlink()
    cache.rmdir()
    cache.write_text("")
    assert windows() == found


def test_padding_counts_for_nothing(tmp_path: Path) -> None:
    prefix = write(tmp_path / "train", [5, 3])
    source = Source.open(prefix, 9, vocab_size=1000, packing="best-fit")
    assert source.packed is not None
    assert (source.num_windows, source.packed.padding) == (1, 0.2)
    for masked in (True, False):
        batch = make_batch([source.window(0)], mask_documents=masked, pin_memory=False)
        between = IGNORE_INDEX if masked else 100
        assert batch.targets_BT.tolist() == [[1, 2, 3, 4, between, 101, 102, *[IGNORE_INDEX] * 2]]


def test_whole_documents_and_shorter_sequences_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="best-fit"):
        DataConfig.model_validate_json(
            '{"sources": [{"path": "a"}], "seq_len": 8, "packing": "best-fit", '
            '"phases": [{"seq_len": 4}]}'
        )
