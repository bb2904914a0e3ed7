"""Shards: what is written is read, Megatron agrees, and damage is an error that says what to do."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.data.read.shards import Shard, ShardWriter, find_shards, token_dtype

any_time = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_unique = itertools.count()


@pytest.fixture(scope="module")
def indexed_dataset() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("megatron.core.datasets.indexed_dataset")


def write(prefix: Path, documents: Sequence[Sequence[int]], vocab_size: int = 1000) -> Path:
    with ShardWriter(prefix, token_dtype(vocab_size)) as writer:
        for document in documents:
            writer.add_document(np.array(document, dtype=np.int64))
    return prefix


def write_idx(prefix: Path, lengths: Sequence[int], boundaries: Sequence[int]) -> None:
    """An index of uint16 tokens with documents of several sequences, as Megatron writes it."""
    pointers = np.cumsum([0, *lengths])[:-1] * 2
    Path(f"{prefix}.idx").write_bytes(
        struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(lengths), len(boundaries))
        + np.array(lengths, "<i4").tobytes()
        + pointers.astype("<i8").tobytes()
        + np.array(boundaries, "<i8").tobytes()
    )
    Path(f"{prefix}.bin").write_bytes(np.arange(sum(lengths), dtype="<u2").tobytes())


documents_strategy = st.lists(
    st.lists(st.integers(0, 999), max_size=6), min_size=1, max_size=12
).filter(any)


@any_time
@given(documents=documents_strategy, vocab_size=st.sampled_from([1000, 100_000]), data=st.data())
def test_reads_back_any_range(
    tmp_path: Path, documents: list[list[int]], vocab_size: int, data: st.DataObject
) -> None:
    shard = Shard.open(write(tmp_path / f"s{next(_unique)}", documents, vocab_size))
    stream = [token for document in documents for token in document]
    owners = [number for number, document in enumerate(documents) for _ in document]
    assert (shard.num_tokens, shard.num_documents) == (len(stream), len(documents))
    assert shard.document_lengths().tolist() == [len(document) for document in documents]
    assert shard.token_range() == (min(stream), max(stream))
    start = data.draw(st.integers(0, len(stream)))
    length = data.draw(st.integers(0, len(stream) - start))
    tokens, ids = shard.read(start, length), shard.document_ids(start, length)
    assert tokens.dtype == np.int64 and ids.dtype == np.int32
    assert tokens.tolist() == stream[start : start + length]
    wanted = owners[start : start + length]
    assert ids.tolist() == [owner - wanted[0] for owner in wanted]


@any_time
@given(sequences=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=8))
def test_documents_of_several_sequences(tmp_path: Path, sequences: list[list[int]]) -> None:
    lengths = [length for document in sequences for length in document]
    if sum(lengths) == 0:
        return
    prefix = tmp_path / f"m{next(_unique)}"
    write_idx(prefix, lengths, np.cumsum([0, *map(len, sequences)]).tolist())
    shard = Shard.open(prefix)
    owners = [n for n, document in enumerate(sequences) for _ in range(sum(document))]
    assert shard.num_documents == len(sequences)
    assert shard.document_lengths().tolist() == [sum(document) for document in sequences]
    assert shard.document_ids(0, shard.num_tokens).tolist() == [o - owners[0] for o in owners]
    assert [shard.document_at(p) for p in range(shard.num_tokens)] == owners


def test_token_dtype_is_megatrons(indexed_dataset: Any) -> None:
    for vocab_size in (2, 65_499, 65_500, 65_536, 200_000):
        assert token_dtype(vocab_size) == indexed_dataset.DType.optimal_dtype(vocab_size)


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_megatron_reads_ours(tmp_path: Path, indexed_dataset: Any, vocab_size: int) -> None:
    documents = [[1, 2, 3], [999], [4] * 50]
    prefix = write(tmp_path / "ours", documents, vocab_size)
    theirs = indexed_dataset.IndexedDataset(str(prefix))
    assert [theirs[number].tolist() for number in range(len(theirs))] == documents
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]
    assert theirs.get(2, offset=1, length=2).dtype == token_dtype(vocab_size)


def test_files_are_bytewise_megatrons(tmp_path: Path, indexed_dataset: Any) -> None:
    torch = pytest.importorskip("torch")
    documents = [[1, 2, 3], [999], [4] * 50]
    ours = write(tmp_path / "ours", documents)
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in documents:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        written = Path(f"{ours}{suffix}").read_bytes()
        assert written == (tmp_path / f"theirs{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_we_read_megatrons(tmp_path: Path, indexed_dataset: Any, dtype: type[np.generic]) -> None:
    torch = pytest.importorskip("torch")
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=dtype)
    for document in ([[1, 2], [3]], [[4]], [[5, 6, 7], [8], [9]]):
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(str(tmp_path / "x.idx"))
    shard = Shard.open(tmp_path / "x")
    assert shard.dtype == dtype
    assert shard.read(0, 9).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert shard.document_ids(0, 9).tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert shard.document_ids(3, 3).tolist() == [0, 1, 1]


def test_index_that_promises_more_than_the_bin_holds(tmp_path: Path) -> None:
    prefix = write(tmp_path / "s", [[1, 2, 3]])
    os.truncate(f"{prefix}.bin", 4)
    with pytest.raises(UserError, match=r"s\.bin: 4 bytes, but s\.idx promises 6: .*cut short"):
        Shard.open(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_file_that_is_too_long(tmp_path: Path, suffix: str) -> None:
    prefix = write(tmp_path / "s", [[1, 2, 3]])
    with Path(f"{prefix}{suffix}").open("ab") as file:
        file.write(bytes(10))
    with pytest.raises(UserError, match=rf"s\{suffix}: .* bytes, but .*promises"):
        Shard.open(prefix)


def _patch(prefix: Path, offset: int, raw: bytes) -> None:
    with Path(f"{prefix}.idx").open("r+b") as file:
        file.seek(offset)
        file.write(raw)


HUGE = struct.pack("<Q", 2**63)


@pytest.mark.parametrize(
    ("offset", "raw", "message"),
    [
        (0, b"X", "does not begin with MMIDIDX"),
        (9, b"\2", "version 2"),
        (17, b"\6", "floating-point"),
        (17, b"\x63", "dtype code 99 is unknown"),
        (18, HUGE, "promises 9,223,372,036,854,775,808 sequences"),
        (26, HUGE, "document boundaries, which take"),
        (34, struct.pack("<i", -1), "negative length"),
        (34, struct.pack("<i", 7), "offsets do not follow"),
        (42, b"\1", "offsets do not follow"),
        (58, b"\1", "do not run from 0"),
        (66, b"\3", "ascending"),
        (74, b"\1", "do not run from 0"),
    ],
)
def test_damaged_index(tmp_path: Path, offset: int, raw: bytes, message: str) -> None:
    prefix = write(tmp_path / "s", [[1, 2, 3], [4]])
    _patch(prefix, offset, raw)
    with pytest.raises(UserError, match=message) as caught:
        Shard.open(prefix)
    assert str(prefix) in str(caught.value)


def test_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokens"):
        Shard.open(write(tmp_path / "s", []))
    with pytest.raises(UserError, match="holds no tokens"):
        Shard.open(write(tmp_path / "t", [[], []]))


def test_multimodal_is_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path / "s", [[1], [2]])
    with Path(f"{prefix}.idx").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match="multimodal"):
        Shard.open(prefix)


def test_missing_and_irregular_files(tmp_path: Path) -> None:
    prefix = write(tmp_path / "s", [[1]])
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(UserError, match=r"s\.bin: cannot be read"):
        Shard.open(prefix)
    os.mkfifo(tmp_path / "pipe.idx")
    (tmp_path / "folder.idx").mkdir()
    for name in ("pipe", "folder", "absent", "nul\0byte"):
        with pytest.raises(UserError):
            Shard.open(tmp_path / name)


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_a_user_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, flipped or random bytes: an error for the user, or a shard that reads within bounds."""
    prefix = write(tmp_path / "s", [[1, 2, 3], [], [4, 5], [6]])
    idx, bin_ = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    raw = bytearray(idx.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "word", "random", "bin"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    elif kind == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(9, len(raw) - 1))] = data.draw(st.integers(0, 255))
    elif kind == "word":
        offset = data.draw(st.integers(17, len(raw) - 8))
        raw[offset : offset + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    elif kind == "random":
        raw = bytearray(data.draw(st.sampled_from([b"", bytes(raw[:18])])))
        raw += data.draw(st.binary(max_size=200))
    else:
        bin_.write_bytes(data.draw(st.binary(max_size=30)))
    idx.write_bytes(raw)
    try:
        shard = Shard.open(prefix)
    except UserError as error:
        assert str(prefix) in str(error)
        return
    assert len(shard.read(0, shard.num_tokens)) == shard.num_tokens
    ids = shard.document_ids(0, shard.num_tokens)
    assert (np.diff(ids) >= 0).all() and ids[-1] < shard.num_documents
    assert shard.document_lengths().sum() == shard.num_tokens


def test_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s", token_dtype(10)) as writer:
        writer.add_document(np.array([1]))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from triax.data.read.shards import ShardWriter, token_dtype\n"
        "with ShardWriter(Path(sys.argv[1]), token_dtype(10)) as writer:\n"
        "    writer.add_document(np.zeros(100_000, int))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=False)
    assert done.returncode == -9
    with pytest.raises(UserError):
        find_shards(tmp_path / "s")
    write(tmp_path / "s", [[1, 2]])
    assert Shard.open(tmp_path / "s").num_tokens == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.bin", "s.idx"]


def test_full_disk_is_a_user_error_without_half_a_shard(tmp_path: Path) -> None:
    """A limit on the file size stands for a full disk: the write fails in the same way."""
    code = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from triax.common.errors import UserError\n"
        "from triax.data.read.shards import ShardWriter, token_dtype\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "try:\n"
        "    with ShardWriter(Path(sys.argv[1]), token_dtype(10)) as writer:\n"
        "        for _ in range(1000):\n"
        "            writer.add_document(np.zeros(5, int))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    # 10,000 bytes of tokens and 20,042 of index: the first limit stops the one, then the other.
    for limit in ("6000", "15000"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "s"), limit],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "cannot be written" in done.stdout and "make room" in done.stdout
        assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="cannot be written"),
        ShardWriter(tmp_path / "no" / "s", token_dtype(10)),
    ):
        pass


def test_find_shards(tmp_path: Path) -> None:
    write(tmp_path / "one.v2", [[1]])
    for number in (0, 1, 2):
        write(tmp_path / f"many-{number:05d}", [[1]])
    write(tmp_path / "many-small", [[1]])
    assert find_shards(tmp_path / "one.v2") == [tmp_path / "one.v2"]
    assert find_shards(str(tmp_path / "many")) == [tmp_path / f"many-0000{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mny", "there are: many, one"),
        ("one.idx", "without .idx or .bin: .*one$"),
        ("lone", "lone.bin alone"),
        ("folder", "a folder"),
        ("absent/x", "holds no .idx files"),
        ("", "a folder"),
        ("a" * 5000, "no such dataset"),
        ("nul\0byte", "no such dataset"),
    ],
)
def test_find_shards_names_near_misses(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "one", [[1]])
    write(tmp_path / "many-00000", [[1]])
    (tmp_path / "lone.bin").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        find_shards(tmp_path / name)


def test_gap_in_a_series(tmp_path: Path) -> None:
    write(tmp_path / "s-00000", [[1]])
    write(tmp_path / "s-00002", [[1]])
    with pytest.raises(UserError, match=r"s-00001\.idx: missing"):
        find_shards(tmp_path / "s")
