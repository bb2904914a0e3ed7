"""Windows over real shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.data.read.shards import ShardWriter, shard_prefix
from triax.data.read.source import Source


def write_shards(prefix: Path, shards: Sequence[Sequence[Sequence[int]]]) -> None:
    """Shards of documents of tokens, as `PREFIX-00000`, `PREFIX-00001`, ..."""
    for number, documents in enumerate(shards):
        with ShardWriter(shard_prefix(prefix, number), np.dtype("<i4")) as writer:
            for document in documents:
                writer.add_document(np.array(document, dtype=np.int64))


documents = st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=8).filter(any)


@settings(deadline=None, max_examples=60)
@given(shards=st.lists(documents, min_size=1, max_size=3), seq_len=st.integers(1, 12))
def test_windows_are_those_of_a_naive_cut(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], seq_len: int
) -> None:
    prefix = tmp_path_factory.mktemp("shards") / "train"
    write_shards(prefix, shards)
    expected: list[tuple[list[int], list[int]]] = []
    for shard in shards:
        stream = [token for document in shard for token in document]
        owners = [number for number, document in enumerate(shard) for _ in document]
        for start in range(0, len(stream) - seq_len, seq_len):
            cut = slice(start, start + seq_len + 1)
            expected.append((stream[cut], owners[cut]))
    if not expected:
        with pytest.raises(UserError, match=f"data.seq_len = {seq_len} needs {seq_len + 1}"):
            Source.open(prefix, seq_len, vocab_size=100)
        return
    source = Source.open(prefix, seq_len, vocab_size=100)
    assert source.num_windows == len(expected)
    for index, (tokens, owners) in enumerate(expected):
        window = source.window(index)
        assert window.tokens.dtype == np.int64 and window.document_ids.dtype == np.int32
        assert window.tokens.tolist() == tokens
        assert window.document_ids.tolist() == [owner - owners[0] for owner in owners]


def test_targets_of_consecutive_windows_cover_a_shard(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [[list(range(21))]])
    source = Source.open(tmp_path / "train", 5, vocab_size=21)
    targets = [source.window(index).tokens[1:] for index in range(source.num_windows)]
    assert np.concatenate(targets).tolist() == list(range(1, 21))


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [[[1, 2, 3]], [[1, 2, 3, 4]]])
    with pytest.raises(UserError, match=r"train-00001: too few .* has 4, .*seq_len = 4 needs 5"):
        Source.open(tmp_path / "train", 4, vocab_size=100)


@pytest.mark.parametrize("bad", [100, 2**31 - 1, -1])
def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path, bad: int) -> None:
    write_shards(tmp_path / "train", [[[1] * 9], [[2] * 5, [2, bad, 2, bad]]])
    source = Source.open(tmp_path / "train", 4, vocab_size=100)
    assert source.window(2).tokens.tolist() == [2] * 5
    with pytest.raises(UserError) as caught:
        source.window(3)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'train-00001'}: token id {bad} at position 6 ")
    assert "model.vocab_size = 100" in message


def test_the_largest_id_of_the_vocabulary_is_taken(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [[[0, 99]]])
    assert Source.open(tmp_path / "train", 1, vocab_size=100).window(0).tokens.tolist() == [0, 99]


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset"):
        Source.open(tmp_path / "train", 4, vocab_size=100)
