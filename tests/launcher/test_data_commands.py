"""`triax tokenizer` and `triax data`, from text to a look into the shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from triax.common.errors import ExitCode
from triax.data.read.shards import ShardWriter, token_dtype
from triax.launcher.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "text").mkdir()
    for number in range(30):
        (folder / "text" / f"{number:02d}.txt").write_text(f"text [bold] {number} " * 20)
    text, tokenizer, output = str(folder / "text"), str(folder / "tok"), str(folder / "out")
    assert main(["tokenizer", "train", text, "--vocab-size", "300", "--output", tokenizer]) == 0
    prepare = ["data", "prepare", text, "--tokenizer", tokenizer, "--output", output]
    assert main([*prepare, "--workers", "1", "--validation-fraction", "0.2"]) == 0
    return folder


def test_a_tokenizer_is_never_written_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "tok" / "tokenizer.json").read_bytes()
    train = ["tokenizer", "train", str(folder / "text"), "--vocab-size", "0.4k"]
    assert main([*train, "--output", str(folder / "tok")]) == ExitCode.BAD_INPUT
    assert "holds a tokenizer.json already" in capsys.readouterr().err
    assert (folder / "tok" / "tokenizer.json").read_bytes() == before
    assert main([*train, "--output", str(folder / "tok400")]) == 0
    assert "400 tokens" in capsys.readouterr().out


def test_a_mistyped_path_is_looked_for_nowhere_else(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it could be the name of a dataset on the hub."""
    monkeypatch.chdir(folder.parent)
    train = ["tokenizer", "train", f"{folder.name}/txt", "--vocab-size", "300"]
    assert main([*train, "--output", str(folder / "other")]) == ExitCode.BAD_INPUT
    assert f"{folder.name}/txt: no such file or folder" in capsys.readouterr().err


def test_inspect_shows_a_table_that_fits_and_a_document(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = str(folder / "out" / "train")
    assert main(["data", "inspect", prefix]) == 0
    shown = capsys.readouterr().out
    assert "all tokens are below the vocabulary's 300" in shown
    for row in ("shards", "uint16", "tokens", "documents", "document length, median"):
        assert row in shown
    table = [line for line in shown.splitlines() if line and line[0] in "│┌└├"]
    assert table and max(map(len, table)) <= 80
    tokenizer = str(folder / "tok")
    assert main(["data", "inspect", prefix, "--tokenizer", tokenizer, "--document", "1"]) == 0
    assert "text [bold] " in capsys.readouterr().out


def test_inspect_says_how_long_documents_are_and_how_many_are_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "train", token_dtype(1000)) as writer:
        for length in (1, 2, 3, 4, 4, 5, 64, 65, 3):
            writer.add_document(np.arange(length))
    assert main(["data", "inspect", str(tmp_path / "train"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["histogram"] == {
        "1": 1, "2": 1, "4": 4, "8": 1, "16": 0, "32": 0, "64": 1, "128": 1,
    }  # fmt: skip
    assert (found["num_documents"], found["num_duplicates"], found["largest_token"]) == (9, 2, 64)
    assert main(["data", "inspect", str(tmp_path / "train")]) == 0
    shown = capsys.readouterr().out
    assert "up to 128             1 ████████" in shown
    assert "duplicates: 2 (22.22%) of the documents, token for token" in shown


def test_inspect_reads_what_clean_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"text": "ein Text" * number, "source": "web", "language": language}
        for number, language in enumerate(["de", "en", "de", None, "de", "fr"], start=1)
    ]
    rows.append(rows[0] | {"source": "books [bold]"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/0.jsonl").write_text(text)
    command = ["data", "inspect", str(tmp_path / "documents")]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "num_documents": 7, "num_characters": 176, "num_duplicates": 1,
        "histogram": {"8": 2, "16": 1, "32": 2, "64": 2},
        "languages": {"de": 4, "en": 1, "unknown": 1, "fr": 1},
        "sources": {"web": 6, "books [bold]": 1},
    }  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "duplicates" in shown and "1 (14.29%)" in shown
    assert "       de             4 ██████████████████████████████" in shown
    assert "  books [bold]             1 █████" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert main([*command, "--document", "1"]) == ExitCode.BAD_INPUT
    (tmp_path / "documents/0.jsonl").write_text("")
    assert main(command) == ExitCode.BAD_INPUT
    assert "no documents" in capsys.readouterr().err


def test_prepare_says_what_it_cut_and_what_both_splits_have(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("one text for both splits " * 20)
    tokenizer, out = str(folder / "tok"), str(tmp_path / "one")
    prepare = ["data", "prepare", "--tokenizer", tokenizer, "--workers", "1"]
    assert main([*prepare, str(tmp_path / "one.txt"), "--output", out]) == 0
    shown = capsys.readouterr()
    assert "document 0 is cut in two: its last 1.00% is for validation" in shown.out
    (tmp_path / "same.jsonl").write_text('{"text": "the same"}\n' * 40)
    out = str(tmp_path / "same")
    command = [*prepare, str(tmp_path / "same.jsonl"), "--output", out]
    assert main([*command, "--validation-fraction", "0.3"]) == 0
    assert "validation documents stand in the training split too" in capsys.readouterr().err


def test_tokens_beyond_the_vocabulary_are_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(folder / "other", token_dtype(1000)) as writer:
        writer.add_document(np.array([1, 999]))
    command = ["data", "inspect", str(folder / "other")]
    assert main([*command, "--tokenizer", str(folder / "tok")]) == ExitCode.BAD_INPUT
    assert "tokens from 1 to 999, expected 0 to 299" in capsys.readouterr().err
    assert main(command) == 0
    assert "no data.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "inspect", "absent"],
        ["data", "inspect", "out/train", "--document", "1"],
        ["data", "inspect", "out/train", "--tokenizer", "tok", "--document", "99"],
        ["data", "inspect", "out/train", "--tokenizer", "tok", "--document", "-1"],
        ["data", "prepare", "text", "--tokenizer", "absent", "--output", "new"],
        ["data", "prepare", "text", "--tokenizer", "tok", "--output", "new", "--workers", "0"],
        ["data", "prepare", "text", "--tokenizer", "tok", "--output", "n", "--tokens-per-shard=x"],
        ["data", "prepare", "absent.txt", "--tokenizer", "tok", "--output", "new"],
        ["tokenizer", "train", "text", "--vocab-size", "9", "--output", "new"],
        ["tokenizer", "train", "text", "--vocab-size", "x", "--output", "new"],
        ["tokenizer"],
        ["data", "prepare"],
    ],
)
def test_mistakes_end_with_2_and_a_message(
    folder: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(arguments) == ExitCode.BAD_INPUT
    message = capsys.readouterr().err
    assert "error" in message and "Traceback" not in message


def test_other_inputs_than_those_of_the_data_are_told_in_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    texts = [f"text/{number:02d}.txt" for number in range(30)]
    options = ["--tokenizer", "tok", "--workers", "1", "--output"]
    assert main(["data", "prepare", *texts, *options, "many"]) == 0
    for inputs, output in ((["text"], "many"), (texts, "out")):
        capsys.readouterr()
        assert main(["data", "prepare", *inputs, *options, output]) == ExitCode.BAD_INPUT
        message = capsys.readouterr().err
        assert '["text/00.txt", "text/01.txt", "text/02.txt", ...] (30 of them)' in message
        assert "text/03.txt" not in message


def test_a_sample_is_looked_for_in_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = str(folder / "out" / "train")
    assert main(["data", "inspect", prefix, "--sample", "3"]) == ExitCode.BAD_INPUT
    assert f"{prefix}: --sample shows what a run read" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["data"], ["data", "prepare"], ["tokenizer", "train"]])
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "example" in shown and max(map(len, shown.splitlines())) <= 100
