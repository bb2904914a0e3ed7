"""From a tokenizer's folder to generation in transformers that ends where documents did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import (
    LLAMA,
    QWEN,
    TEMPLATE,
    alone,
    byte_tokenizer,
    llama_3_instruct,
    qwen,
    sentences,
)

from triax.checkpoint.store import CheckpointStore
from triax.common.errors import ExitCode
from triax.data.prepare.document_tokens import document_tokens
from triax.inference.export_tokens import recorded_tokens
from triax.launcher.cli import main
from triax.models.families import recorded_model
from triax.models.layers.transformer import Transformer

transformers = pytest.importorskip("transformers")

MODEL = recorded_model(
    {
        "num_layers": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "num_kv_heads": 2,
        "ffn_hidden_size": 16,
        "vocab_size": 259,
    }
)


def run_that_says(folder: Path, token: int, tokenizer: Path, **data: str) -> Path:
    """A run whose model takes one token for the likeliest, whatever stands before it."""
    model = Transformer(MODEL)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0 if "embedding" in name or "norm" in name else 0.0)
    assert model.head is not None
    model.head.weight.data[token] = 1.0
    config = {
        "model": MODEL.model_dump(mode="json"),
        "data": {"seq_len": 32, "tokenizer": str(tokenizer), **data},
    }
    tokens = document_tokens(tokenizer, data.get("end_of_text"), data.get("begin_of_text"))
    record = {"tokens": 0, "config": config, "document_tokens": tokens.to_json()}
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    store = CheckpointStore(folder / "checkpoints", keep=1, asynchronous=False, deadline_seconds=60)
    store.save(1, tensors, record)
    outcome = store.wait()
    assert outcome is not None and outcome.error is None
    return folder


def token_id(special: Sequence[str], token: str) -> int:
    """Of a token of `byte_tokenizer`."""
    found = byte_tokenizer(special).token_to_id(token)
    assert found is not None
    return found


def exported(run: Path, output: Path) -> Path:
    assert main(["checkpoint", "export", str(run), "--output", str(output)]) == ExitCode.DONE
    return output


def generated(folder: Path, prompt: str = "ab") -> list[int]:
    """The tokens that transformers adds to a prompt, as a user would have them made."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    return answer


@pytest.mark.parametrize("make", [llama_3_instruct, qwen, sentences, alone])
def test_generation_ends_with_the_document(
    tmp_path: Path, make: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make(tmp_path / "t")
    end = document_tokens(tokenizer).end
    run = run_that_says(tmp_path / "run", end.id, tokenizer)
    folder = exported(run, tmp_path / "hf")
    assert generated(folder) == [end.id]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.eos_token, theirs.eos_token_id) == (end.name, end.id)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        assert content["bos_token_id"] == content["eos_token_id"] == end.id
    capsys.readouterr()
    command = ["generate", str(run), "--prompt", "ab", "--temperature", "0"]
    assert main(command) == ExitCode.DONE
    assert capsys.readouterr().out == "ab\n"


def test_an_end_that_was_named_stands_beside_the_tokenizers_own(tmp_path: Path) -> None:
    tokenizer = llama_3_instruct(tmp_path / "t")
    named, own = (token_id(LLAMA, name) for name in LLAMA[1:])
    data = {"end_of_text": LLAMA[1], "begin_of_text": LLAMA[0]}
    run = run_that_says(tmp_path / "run", named, tokenizer, **data)
    folder = exported(run, tmp_path / "hf")
    assert generated(folder) == [named]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [named, own]
    assert model.generation_config.bos_token_id == token_id(LLAMA, LLAMA[0])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token, theirs.eos_token) == LLAMA[:2]


def test_a_token_that_training_never_saw_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = llama_3_instruct(tmp_path / "t")
    exported(run_that_says(tmp_path / "run", 0, tokenizer), tmp_path / "hf")
    assert f"warning: this tokenizer puts {LLAMA[0]} before each text" in capsys.readouterr().out
    with_begin = run_that_says(tmp_path / "run2", 0, tokenizer, begin_of_text=LLAMA[0])
    exported(with_begin, tmp_path / "hf2")
    assert "warning" not in capsys.readouterr().out


def test_what_else_the_folder_holds_survives(tmp_path: Path) -> None:
    run = run_that_says(tmp_path / "run", 0, qwen(tmp_path / "t"))
    folder = exported(run, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.chat_template == TEMPLATE
    assert theirs.model_max_length == 32768
    assert theirs.pad_token == QWEN[0]
    pad = byte_tokenizer(QWEN).token_to_id(QWEN[0])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == pad


@pytest.mark.parametrize("record", [{}, {"document_tokens": None}])
def test_a_checkpoint_that_names_no_tokens_asks_the_tokenizer(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    tokenizer = qwen(tmp_path / "t")
    assert recorded_tokens(record, tokenizer).end.name == QWEN[2]
    named = {**record, "config": {"data": {"end_of_text": QWEN[0]}}}
    assert recorded_tokens(named, tokenizer).end.name == QWEN[0]


def test_a_run_of_version_0_1_ended_documents_by_its_list(tmp_path: Path) -> None:
    record = {"layout": {}, "config": {"data": {"tokenizer": "t"}}}
    assert recorded_tokens(record, qwen(tmp_path / "t")).end.name == "<|endoftext|>" == QWEN[0]


def test_a_tokenizer_saved_with_padding_and_truncation_spoils_no_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = qwen(tmp_path / "t")
    raw = json.loads((tokenizer / "tokenizer.json").read_text())
    raw["padding"] = {
        "strategy": {"Fixed": 2**40}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": QWEN[0],
    }  # fmt: skip
    raw["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (tokenizer / "tokenizer.json").write_text(json.dumps(raw))
    letter = token_id(QWEN, "c")
    run = run_that_says(tmp_path / "run", letter, tokenizer)
    command = ["generate", str(run), "--prompt", "abab", "--temperature", "0", "--max-tokens", "3"]
    assert main(command) == ExitCode.DONE
    assert capsys.readouterr().out == "ababccc\n"
