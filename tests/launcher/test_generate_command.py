"""`triax generate` answers whatever it is given, and shows all of it wherever it is shown."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import ExitCode
from triax.data.prepare.tokenizer import train_tokenizer
from triax.launcher.cli import main
from triax.models.families import recorded_model
from triax.models.layers.transformer import Transformer

MODEL = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One with a context of 8 tokens, and its tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text("a")
    train_tokenizer([str(folder / "text")], 257, folder / "tokenizer")
    torch.manual_seed(0)
    model = Transformer(recorded_model(MODEL | {"vocab_size": 257}))
    shards = {f"model.{name}": whole(p.detach()) for name, p in model.named_parameters()}
    data = {"seq_len": 8, "tokenizer": str(folder / "tokenizer")}
    record = {"config": {"model": MODEL | {"vocab_size": 257}, "data": data}}
    path = folder / "checkpoints/step-00000001"
    path.parent.mkdir()
    write_checkpoint(path, shards, record, step=1)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1" + "0" * 30], "--seed: expected a whole number of at least 0 and below"),
        (["--seed", "18446744073709551616"], "below 2^64"),
        (["--seed", "-1"], "below 2^64"),
        (["--prompt", b"\xff\xfe".decode(errors="surrogateescape")], "--prompt: expected text in"),
        (["--temperature", "nan"], "--temperature: expected a number of at least 0"),
    ],
)
def test_what_makes_no_sense_is_told(
    checkpoint: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", checkpoint, *arguments]) == ExitCode.BAD_INPUT
    assert words in capsys.readouterr().err


def test_a_prompt_beyond_the_context_is_told(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", checkpoint, "--max-tokens", "2", "--prompt"]
    assert main([*command, "8 bytes."]) == 0
    assert capsys.readouterr().err == ""
    assert main([*command, "9 bytes.."]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("9 bytes..")
    assert "--prompt has 9 tokens, of which the model sees the last 8" in shown.err


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_many_prompts_give_json_lines(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.txt").write_text("abc\n\nlonger prompt\n", encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "abc"}\n{"prompt": ""}\n', encoding="utf-8")
    command = ["generate", checkpoint, "--max-new-tokens", "5", "--json", "--prompts"]
    assert main([*command, str(tmp_path / "plain.txt"), "--num-samples", "2"]) == 0
    found = lines(capsys)
    assert [line["prompt"] for line in found] == ["abc", "abc", "longer prompt", "longer prompt"]
    assert found[0]["text"] != found[1]["text"], "samples have seeds of their own"
    assert all(line["num_tokens"] == 5 and line["log_prob"] < 0 for line in found)
    assert {line["finish_reason"] for line in found} == {"length"}
    assert main([*command, str(tmp_path / "lines.jsonl"), "--batch-size", "1"]) == 0
    assert lines(capsys)[0]["text"] == found[0]["text"], "alone as beside others"


def test_a_stop_string_ends_a_text_before_it(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", checkpoint, "--prompt", "ab", "--max-tokens", "30", "--top-k", "5"]
    assert main([*command, "--json"]) == 0
    [whole] = lines(capsys)
    stop = whole["text"][10:13]
    cut = whole["text"][: whole["text"].index(stop)]
    assert main([*command, "--json", "--stop", stop]) == 0
    [stopped] = lines(capsys)
    assert (stopped["text"], stopped["finish_reason"]) == (cut, "stop")
    assert main([*command, "--stop", stop]) == 0
    assert capsys.readouterr().out == f"ab{cut}\n", "what is streamed holds back its beginning"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompt"),
        (b"\xff", "not UTF-8 text"),
        (b'{"prompt": "a"}\n\n{"text": "b"}', 'line 3: expected {"prompt": TEXT}'),
        (None, "no such file"),
    ],
)
def test_bad_files_of_prompts(
    checkpoint: str,
    tmp_path: Path,
    content: bytes | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "prompts").write_bytes(content)
    command = ["generate", checkpoint, "--prompts", str(tmp_path / "prompts")]
    assert main(command) == ExitCode.BAD_INPUT
    assert words in capsys.readouterr().err


def test_all_that_is_drawn_is_shown(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no character, too: they stand at the end, or before another character."""
    command = ["generate", checkpoint, "--prompt", "<|endoftext|>x", "--max-tokens"]
    texts = []
    for num_tokens in ("1", "12", "40"):
        assert main([*command, num_tokens, "--temperature", "5"]) == 0
        texts.append(capsys.readouterr().out.removesuffix("\n"))
    assert all(text.startswith("<|endoftext|>x") for text in texts)
    # A byte each, of which at most four make a character.
    for text, num_bytes in zip(texts, (1, 12, 40), strict=True):
        added = text.removeprefix("<|endoftext|>x")
        assert num_bytes / 4 <= len(added) <= num_bytes


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stdout_that_is_not_utf8_gets_escapes(
    checkpoint: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(["generate", checkpoint, "--prompt", "漢", "--max-tokens", "12"]) == 0
    assert raw.getvalue().startswith(b"\\u6f22")


def test_a_closed_stdout_is_no_error(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", checkpoint, "--max-tokens", "2"]) == 0


def test_a_closed_stdin_holds_no_prompts(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", checkpoint, "--prompts", "-"]) == ExitCode.BAD_INPUT
    assert "the standard input: is closed" in capsys.readouterr().err


def test_other_options_take_text_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = b"\xff".decode(errors="surrogateescape")
    out = ["--output", str(tmp_path / "out")]
    for command in (
        ["data", "prepare", "x", "--tokenizer", "t", *out, "--end-of-text", other],
        ["data", "prepare", "x", "--tokenizer", "t", *out, "--text-field", other],
        ["tokenizer", "train", "x", "--vocab-size", "300", *out, "--text-field", other],
    ):
        assert main(command) == ExitCode.BAD_INPUT
        assert "expected text in UTF-8" in capsys.readouterr().err
