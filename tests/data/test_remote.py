"""Files in stores give what local ones give: texts, samples and tokenizers, through a real S3
server that is throttled, killed and started again."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from object_store import BUCKET, ObjectStore, object_store

from triax.common.errors import UserError
from triax.common.paths import expand, same_path, url_of
from triax.common.quantities import parse_size
from triax.data.config import DataConfig
from triax.data.prepare.corpus import prepare
from triax.data.prepare.inputs import inputs_fingerprint, resolve
from triax.data.prepare.text import iter_records
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer
from triax.data.read.digest import shard_digest
from triax.data.read.integrity import files_of, verify_dataset
from triax.data.read.opening import open_source
from triax.data.read.shards import ShardWriter, find_shards
from triax.data.remote.cache import BLOCK_BYTES, Cache
from triax.data.remote.files import read_range, stat_url
from triax.data.remote.patience import patiently

SEQ_LEN, VOCAB_SIZE = 200, 5000


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def _write_texts(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": f"document {number} " + "word " * number, "n": number} for number in range(40)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "z" / "inner").mkdir(parents=True)
    (folder / "b.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines[:2000].rpartition(b"\n")[0]))
    (folder / "z" / "note.txt.bz2").write_bytes(bz2.compress("só weit\n".encode()))
    (folder / "z" / "inner" / ".hidden.txt").write_text("no")
    packed = pyarrow.compress(lines, "zstd", asbytes=True)
    (folder / "z" / "inner" / "c.jsonl.zst").write_bytes(packed)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")


def test_inputs_are_read_as_local_ones(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    _write_texts(folder)
    url = store.put_folder(folder, "inputs")

    def told(name: str) -> list[tuple[str, str, int, object]]:
        return [
            (r.text, r.origin.removeprefix(name), r.number, r.fields.get("n"))
            for r in iter_records([name], with_fields=True)
        ]

    assert told(url) == told(str(folder))
    assert len(told(url)) > 100
    for pattern in ("*.jsonl*", "**/c.*", "z/*", "[ab].jsonl"):
        assert told(f"{url}/{pattern}") and len(told(f"{url}/{pattern}")) == len(
            told(f"{folder}/{pattern}")
        ), pattern
    web = f"{store.address}/{BUCKET}/inputs/b.jsonl"
    assert [r.text for r in iter_records([web])] == [
        r.text for r in iter_records([str(folder / "b.jsonl")])
    ]
    before = inputs_fingerprint([url])
    assert inputs_fingerprint([url]) == before
    store.put("inputs/b.jsonl", b'{"text": "another"}\n')
    assert inputs_fingerprint([url]) != before


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("address", ["inputs/none", "inputs/none/*.txt"])
def test_what_is_not_there_is_said_at_once(address: str) -> None:
    with pytest.raises(UserError, match=f"s3://{BUCKET}/inputs/none.*no files found"):
        resolve(f"s3://{BUCKET}/{address}")


def test_a_web_servers_folder_is_refused(store: ObjectStore) -> None:
    with pytest.raises(UserError, match="doesn't list its folders"):
        resolve(f"{store.address}/{BUCKET}/nothing")


@pytest.fixture(scope="module")
def shards(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of some megabytes, here and in the store under `shards/`."""
    folder = tmp_path_factory.mktemp("shards")
    chance = np.random.default_rng(3)
    for number in range(2):
        with ShardWriter(folder / f"train-{number:05d}", np.dtype("<u2")) as writer:
            for length in chance.integers(1, 4000, 400):
                writer.add_document(chance.integers(0, VOCAB_SIZE, length))
    store.put_folder(folder, "shards")
    return folder / "train"


def test_samples_are_the_local_ones_through_a_bounded_cache(
    store: ObjectStore, shards: Path, tmp_path: Path
) -> None:
    size = 6 * BLOCK_BYTES
    local = open_source(shards, SEQ_LEN, VOCAB_SIZE)
    for prefix in (f"s3://{BUCKET}/shards/train", f"{store.address}/{BUCKET}/shards/train"):
        cache = Cache(tmp_path / "cache", size)
        remote = open_source(prefix, SEQ_LEN, VOCAB_SIZE, cache=cache)
        assert remote.is_remote and not local.is_remote
        assert remote.num_windows == local.num_windows > 5000
        order = np.random.default_rng(1).permutation(local.num_windows)[:400]
        for index in order.tolist():
            ours, theirs = remote.window(index), local.window(index)
            assert np.array_equal(ours.tokens, theirs.tokens)
            assert np.array_equal(ours.document_ids, theirs.document_ids)
        kept = sum(path.stat().st_size for path in (tmp_path / "cache/blocks").glob("*/*"))
        assert 0 < kept <= size
        digests = [shard_digest(each) for each in find_shards(prefix, cache)]
        assert digests == [shard_digest(each) for each in find_shards(shards)]


def test_a_kept_block_needs_no_store_and_a_damaged_one_is_fetched_again(
    store: ObjectStore, shards: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    file = stat_url(f"s3://{BUCKET}/shards/train-00000.bin")
    assert file is not None
    content = cache.read(file, 100, 1000)
    assert content == Path(f"{shards}-00000.bin").read_bytes()[100:1000]
    sent = store.num_bytes
    assert cache.read(file, 100, 1000) == content and store.num_bytes == sent
    [block] = (tmp_path / "cache/blocks").glob("*/*")
    block.write_bytes(b"x" + block.read_bytes()[1:])
    assert cache.read(file, 100, 1000) == content and store.num_bytes > sent


def test_a_replaced_file_is_refused(store: ObjectStore) -> None:
    store.put("one.bin", bytes(1000))
    file = stat_url(f"s3://{BUCKET}/one.bin")
    assert file is not None
    store.put("one.bin", bytes(999) + b"1")
    with pytest.raises(UserError, match="was replaced by another file"):
        read_range(file, 0, 10)


def test_a_dataset_follows_its_store(store: ObjectStore, shards: Path) -> None:
    """What was mirrored isn't taken for what is there now."""
    for suffix in (".bin", ".idx"):
        store.put(f"moving/train{suffix}", Path(f"{shards}-00000{suffix}").read_bytes())
    prefix = f"s3://{BUCKET}/moving/train"
    first = shard_digest(find_shards(prefix)[0])
    for suffix in (".bin", ".idx"):
        store.put(f"moving/train{suffix}", Path(f"{shards}-00001{suffix}").read_bytes())
    assert shard_digest(find_shards(prefix)[0]) == shard_digest(Path(f"{shards}-00001")) != first
    with pytest.raises(UserError, match="no such dataset"):
        find_shards(f"s3://{BUCKET}/moving/trained")


def test_checksums_are_compared_in_the_store(store: ObjectStore, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of a text\n\n" for number in range(3000)))
    train_tokenizer([str(text)], 280, tmp_path / "tok")
    prepare([str(text)], tmp_path / "tok", tmp_path / "data", num_workers=1)
    prefix = f"{store.put_folder(tmp_path / 'data', 'sums')}/train"
    assert files_of([prefix]).without == [] and len(files_of([prefix]).files) == 2
    assert [file.path.suffix for file in files_of([prefix], with_remote=False).files] == [".idx"]
    assert verify_dataset(prefix).problems == []
    content = (tmp_path / "data/train-00000.bin").read_bytes()
    store.put("sums/train-00000.bin", content[:-1] + b"\x01")
    [problem] = verify_dataset(prefix).problems
    assert "damaged" in problem


def test_a_tokenizer_is_brought_here(store: ObjectStore, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("so it went on for a while " * 20)
    train_tokenizer([str(text)], 280, tmp_path / "tok")
    url = store.put_folder(tmp_path / "tok", "tok")
    encoded = load_tokenizer(tmp_path / "tok").encode("so it went").ids
    for path in (url, f"{url}/tokenizer.json", expand(url)):
        assert load_tokenizer(path).encode("so it went").ids == encoded
    with pytest.raises(UserError, match="no such tokenizer"):
        load_tokenizer(f"s3://{BUCKET}/nowhere")


def test_reading_goes_on_when_a_store_comes_back(
    store: ObjectStore, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = open_source(
        f"s3://{BUCKET}/shards/train", SEQ_LEN, VOCAB_SIZE, cache=Cache(tmp_path / "cache", 1)
    )
    local = open_source(shards, SEQ_LEN, VOCAB_SIZE)
    store.kill()

    def come_back() -> None:
        time.sleep(2.0)
        store.bytes_per_second = 2e6
        store.start()

    back = threading.Thread(target=come_back)
    back.start()
    with caplog.at_level(logging.WARNING):
        for index in (3, 4000, 17):
            assert np.array_equal(remote.window(index).tokens, local.window(index).tokens)
    back.join()
    store.bytes_per_second = None
    assert f"waiting for s3://{BUCKET}/shards/train-0000" in caplog.text
    assert "answers again" in caplog.text


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError("503 Slow Down")

    with pytest.raises(UserError, match=r"s3://b/f: not read in .* tries: 503 Slow Down"):
        patiently("s3://b/f", fail, patience=0.01)
    assert len(calls) > 1


def test_addresses_stay_whole(tmp_path: Path) -> None:
    url = "s3://bucket/a/train"
    assert url_of(expand(url)) == url_of(url) == url
    assert url_of("s3/a") is None and url_of(tmp_path) is None
    assert same_path(url, Path(url)) and not same_path(url, "s3://bucket/a/other")
    config = DataConfig.model_validate(
        {"sources": ({"path": url},), "seq_len": 8, "tokenizer": "hf://datasets/o/n/tok"}
    )
    assert (config.sources[0].path, config.tokenizer) == (url, "hf://datasets/o/n/tok")


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20 * 10**9), ("1.5 GiB", 3 << 29), ("4096", 4096), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "-1", "0", "20 PB", True, 1.5])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="bytes"):
        parse_size(text)  # type: ignore[arg-type]
