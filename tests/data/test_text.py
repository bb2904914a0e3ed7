"""Inputs and documents: every kind of file, order, and messages that name file and line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import sysconfig
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from triax.common.errors import UserError
from triax.data.prepare.inputs import DatasetName, inputs_fingerprint, resolve
from triax.data.prepare.text import iter_documents

TEXTS = ["first\nline two", "zweite, schön", "第三 🙂"]


def read(*inputs: object, text_field: str = "text") -> list[str]:
    return list(iter_documents([str(text) for text in inputs], text_field))


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


def as_parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": [1] * len(texts), "text": texts}), sink)
    return sink.getvalue()


def zstd(raw: bytes) -> bytes:
    return bytes(pyarrow.compress(raw, codec="zstd", asbytes=True))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".txt", ".md", ""])
def test_every_kind_and_compression(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"v1.2{kind}{suffix}"
    if kind in (".jsonl", ".json"):
        raw, texts = json_lines(TEXTS), TEXTS
    elif kind == ".parquet":
        raw, texts = as_parquet(TEXTS), TEXTS
    else:
        raw, texts = TEXTS[0].encode(), TEXTS[:1]
    file.write_bytes(COMPRESSIONS[suffix](raw))
    assert read(file) == texts
    assert read(tmp_path) == texts


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_compression_is_a_user_error(tmp_path: Path, suffix: str) -> None:
    raw = COMPRESSIONS[suffix](json_lines([f"text {n}" for n in range(5000)]))
    for name, damaged in (("cut", raw[:-20]), ("other", b"no compressed data at all")):
        file = tmp_path / f"{name}.jsonl{suffix}"
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name}.jsonl{suffix}"):
            read(file)


@settings(deadline=None, max_examples=200)
@given(raw=st.binary(max_size=60), kind=st.sampled_from([".jsonl", ".parquet", ".gz", ".zst"]))
def test_random_bytes_are_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, kind: str
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / f"x{kind}"
    file.write_bytes(raw)
    try:
        documents = read(file)
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert "".join(documents).encode().decode() == "".join(documents)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "no JSON object"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"body": "x", "id": 1}', 'no field "text"; there are: body, id.*--text-field'),
        (b'{"text": 3}', '"text" holds int, expected a string'),
        (b'{"text": "\xff"}', "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b"{}", 'no field "text"; there are: none'),
    ],
)
def test_malformed_line_names_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(json_lines(["good"]) + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=rf"x\.jsonl, line 3: {message}"):
        read(file)


def test_other_programs_json_is_left_out_of_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = ['{"name": "x", "version": "1"}', '{\n  "name": "x"\n}\n', '[{"text": "x"}]', "3"]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.json").write_text(content)
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json_lines(TEXTS))
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == TEXTS
    for number in range(len(contents)):
        assert f"{number}.json: left out, it holds no documents in JSON lines" in caplog.text
        with pytest.raises(UserError, match=rf"{number}\.json, line 1"):
            read(tmp_path / f"{number}.json")
    (tmp_path / "x.json").write_bytes(json_lines(TEXTS) + b"{}\n")
    with pytest.raises(UserError, match=r"x\.json, line 4"):
        read(tmp_path)


def test_numbers_that_python_refuses_are_no_concern(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": ' + "9" * 5000 + ', "text": "good"}\n')
    assert read(tmp_path / "x.jsonl") == ["good"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_long_texts_become_several_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("triax.data.prepare.text.MAX_DOCUMENT", 100)
    text = "".join(f"line {number}, schön\r\n" for number in range(40)) + "é" * 350
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESSIONS[suffix](text.encode()))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(COMPRESSIONS[suffix](json_lines([text])))
    parts = read(tmp_path / f"a.txt{suffix}")
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 100 and len(parts) < 2 * len(text) / 100
    assert parts[0].endswith("\n")
    assert read(tmp_path / f"b.jsonl{suffix}") == parts


def test_a_long_file_that_ends_as_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("triax.data.prepare.text.MAX_DOCUMENT", 10_000)
    (tmp_path / "a.txt").write_bytes(b"word " * 10_000 + b"\xff")
    with caplog.at_level(logging.WARNING):
        assert len("".join(read(tmp_path))) >= 20_000
    assert "a.txt: left out, it is not UTF-8 text behind what was read" in caplog.text


BOMBS = {
    "x.txt.gz": b"\0" * (1 << 26),
    "x.jsonl.gz": b'{"text": "' + b"a" * (1 << 26) + b'"}',
    "x.parquet.gz": b"\0" * (1 << 26),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unfolds_to_much_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("triax.data.prepare.text.MAX_DOCUMENT", 1 << 18)
    monkeypatch.setattr("triax.data.prepare.text._MAX_BYTES", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(BOMBS[name], 1))
    tracemalloc.start()
    try:
        if name == "x.txt.gz":
            assert sum(map(len, iter_documents([str(tmp_path / name)]))) == 1 << 26
        else:
            with pytest.raises(UserError, match=r"(more|longer) than 1 MiB"):
                read(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_text_field(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "a"}\n')
    parquet.write_table(pyarrow.table({"body": ["b"]}), tmp_path / "y.parquet")
    assert read(tmp_path, text_field="body") == ["a", "b"]
    with pytest.raises(UserError, match=r'y\.parquet: no field "text"; there are: body'):
        read(tmp_path / "y.parquet")


def test_parquet_of_numbers(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match=r"y\.parquet, row 1: .*expected a string"):
        read(tmp_path)


def test_empty_and_null_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": null}\n{"text": "x"}\n')
    parquet.write_table(pyarrow.table({"text": [None, "", "y"]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").touch()
    assert read(tmp_path) == ["x", "y"]


def test_half_surrogates_become_valid_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude42"}\n')
    assert read(tmp_path) == ["a\ufffdb 🙂"]


def test_folder_is_read_in_order_without_hidden_files_and_loops(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a.txt", "c/.git/x.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "loop2").symlink_to(tmp_path)
    assert read(tmp_path) == ["a.txt", "b/10.txt", "b/2.txt"]
    assert read(f"{tmp_path}/**/*.txt") == ["a.txt", "b/10.txt", "b/2.txt"]
    assert read(f"{tmp_path}/b/[0-9].txt", tmp_path / "a.txt") == ["b/2.txt", "a.txt"]


def test_relative_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.txt").write_text("one")
    monkeypatch.chdir(tmp_path)
    assert read("x/*.txt") == read("*/1.txt") == read("x*") == ["one"]
    monkeypatch.chdir("x")
    assert read("../x/*.txt") == read("../*/1.txt") == ["one"]


def test_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    assert read(tmp_path / "a[1].txt") == ["one"]


def test_binary_files_of_a_folder_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\xff")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == ["text"]
    assert "b.png: left out" in caplog.text
    with pytest.raises(UserError, match=r"b\.png: not UTF-8"):
        read(tmp_path / "b.png")


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffx".encode())
    assert read(tmp_path) == ["x"]


def test_streams(tmp_path: Path) -> None:
    """What comes before a bad line is given out before the error is met."""
    (tmp_path / "x.jsonl").write_bytes(json_lines(TEXTS) + b"{\n")
    documents = iter_documents([str(tmp_path)])
    assert [next(documents) for _ in TEXTS] == TEXTS
    with pytest.raises(UserError):
        next(documents)


@pytest.mark.parametrize(
    "text",
    [
        "absent.txt",
        "no/such/folder",
        "./absent",
        "/absent",
        "*.absent",
        "x.jsonl.gz",
        "é",
        "~nobody-x/y",
        "a" * 5000,
    ],
)
def test_no_such_input(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        resolve(text)


def test_wrong_input_is_found_before_the_first_document(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="absent"):
        iter_documents([str(tmp_path), "absent.txt"])


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no files found"):
        read(tmp_path)


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"x\.jsonl: cannot be read"):
        read(tmp_path / "x.jsonl")


def test_names_of_datasets() -> None:
    assert resolve("wikitext") == DatasetName("wikitext", None)
    assert resolve("Salesforce/wikitext:v1.0") == DatasetName("Salesforce/wikitext", "v1.0")


def test_dataset_is_streamed_through_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name: str, config: str | None, **options: object) -> Any:
        calls.append((name, config, options))
        return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("owner/name:sub") == TEXTS
    assert calls == [("owner/name", "sub", {"split": "train", "streaming": True})]
    with pytest.raises(UserError, match='owner/name, row 1: no field "body"; there are: text'):
        read("owner/name", text_field="body")


def test_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_args: object, **_options: object) -> None:
        raise ConnectionError("no network\nlong explanation")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"owner/name: no such file or folder, .*: no network$"):
        read("owner/name")


def stdlib_files() -> list[Path]:
    found = resolve("python-stdlib")
    assert not isinstance(found, DatasetName)
    return [file.path for file in found]


def test_stdlib_is_real_shuffled_and_without_tests() -> None:
    files = stdlib_files()
    root = Path(sysconfig.get_paths()["stdlib"])
    relative = [os.fspath(path.relative_to(root)) for path in files]
    assert "argparse.py" in relative and len(files) > 300
    assert not [name for name in relative if {"site-packages", "test"} & set(Path(name).parts)]
    assert relative != sorted(relative)
    assert files == stdlib_files()
    # No stretch of the order is one package's.
    asyncio = [n for n, name in enumerate(relative) if name.startswith("asyncio")]
    assert asyncio[-1] - asyncio[0] > len(relative) // 2


def test_fingerprint_sees_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    before = inputs_fingerprint([str(tmp_path)])
    assert before == inputs_fingerprint([str(tmp_path)])
    assert before != inputs_fingerprint([str(file)])
    os.utime(file, (1, 1))
    assert before != inputs_fingerprint([str(tmp_path)])


def test_linked_folders_are_read_as_the_glob_reads_them_and_each_once(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for path in (corpus / "own/a.txt", elsewhere / "deep/b.txt"):
        path.parent.mkdir(parents=True)
        path.write_text(path.stem)
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "loop").symlink_to(corpus)
    (corpus / "own2").symlink_to(corpus / "own")
    (corpus / "own/again.txt").symlink_to(corpus / "own/a.txt")
    assert list(iter_documents([str(corpus)])) == ["b", "a"]
    assert list(iter_documents([f"{corpus}/*"])) == ["b", "a"]


@pytest.mark.parametrize("second", ["a.txt", "./a.txt", "link.txt", "*.txt", ".", "linked"])
def test_a_file_that_is_given_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text")
    Path("link.txt").symlink_to("a.txt")
    Path("linked").symlink_to(tmp_path)
    for read in (iter_documents, inputs_fingerprint):
        with pytest.raises(UserError, match=r"a\.txt is given twice, by a\.txt and by "):
            read(["a.txt", second])


def test_a_dataset_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="the dataset wikitext:v1 is given twice"):
        iter_documents(["wikitext:v1", "wikitext", "wikitext:v1"])


def test_home_and_variables_in_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CORPUS", str(tmp_path))
    for text in ("~/a.txt", "$CORPUS/a.txt", "${CORPUS}/*.txt", "$CORPUS"):
        assert list(iter_documents([text])) == ["text"]
    with pytest.raises(UserError, match="variable NOWHERE isn't set"):
        iter_documents(["$NOWHERE/a.txt"])
