"""`triax tokenizer train` and `compare`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triax.common.errors import ExitCode
from triax.launcher.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"text": "die Katze saß auf der Matte 12", "language": "de"}] * 30
    rows += [{"text": "the cat sat on the mat 345, $x_i$", "language": "en"}] * 30
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.txt").write_text("def f(x):\n    return x + 1\n" * 20)
    train = ["tokenizer", "train", str(folder / "a.jsonl")]
    assert main([*train, "--vocab-size", "300", "--output", str(folder / "bpe")]) == 0
    digits = ["--split-digits", "--special-token", "<|im_start|>"]
    output = ["--vocab-size", "310", "--output", str(folder / "a long name for digits")]
    assert main([*train, *output, *digits]) == 0
    return folder


def test_compare_says_how_short_how_fast_and_whether_all_comes_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers = [str(folder / "bpe"), str(folder / "a long name for digits")]
    given = [text for path in tokenizers for text in ("--tokenizer", path)]
    inputs = [str(folder / "a.jsonl"), str(folder / "b.txt")]
    command = ["tokenizer", "compare", *inputs, *given]
    assert main([*command, "--plot", str(tmp_path / "x.png")]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("100%") == 4 and "...e for digits" in shown and "lossless" in shown
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--by", "language", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["group"] for row in found] == ["de", "en", "unknown"] * 2
    for row in found:
        assert row["num_lossless"] == row["num_documents"]
        assert row["bytes_per_token"] == row["num_bytes"] / row["num_tokens"]
    assert [row["num_documents"] for row in found[:3]] == [30, 30, 1]
    assert found[0]["bytes_per_token"] > 2 > found[2]["bytes_per_token"]
    assert main([*command, "--plot", str(tmp_path / "no/x.png")]) == ExitCode.BAD_INPUT
    assert "can't be written" in capsys.readouterr().err


def test_two_ways_to_split_exclude_each_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["tokenizer", "train", str(folder / "b.txt"), "--vocab-size", "300"]
    train += ["--output", str(tmp_path / "t"), "--pattern", "gpt2"]
    for more in (["--split-digits"], ["--model", "unigram"]):
        assert main([*train, *more]) == ExitCode.BAD_INPUT
        assert "leave one of the two out" in capsys.readouterr().err
