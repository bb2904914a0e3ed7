"""Checkpoints whose record is whatever JSON can hold: said in one line, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triax.checkpoint.folders import inspect
from triax.checkpoint.manifest import read_manifest, write_manifest
from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import ExitCode, UserError, record_errors
from triax.launcher.cli import main
from triax.models.families import recorded_model
from triax.models.layers.transformer import Transformer

MODEL = {
    "num_layers": 1, "hidden_size": 8, "num_heads": 2, "ffn_hidden_size": 8, "vocab_size": 16,
}  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "no config": {},
    "config is a list": {"config": [1]},
    "config is text": {"config": "\x1b[2J"},
    "model is a number": {"config": {"model": 3}},
    "model of text": {"config": {"model": MODEL | {"num_layers": "1"}}},
    "model without end": {"config": {"model": MODEL | {"num_layers": 10**30}}},
    "data is a list": {"config": {"model": MODEL, "data": []}},
    "tokenizer is a number": {"config": {"model": MODEL, "data": {"tokenizer": 5, "seq_len": 8}}},
    "tokenizer is gone": {"config": {"model": MODEL, "data": {"tokenizer": "\x1b[2J"}}},
    "length is text": {"config": {"model": MODEL, "data": {"seq_len": "8"}}},
    "counts are huge": {"config": {"model": MODEL}, "tokens": 10**400, "step": []},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "step-00000001"
    model = Transformer(recorded_model(MODEL))
    shards = {f"model.{name}": whole(p.detach()) for name, p in model.named_parameters()}
    write_checkpoint(folder, shards, {}, step=1)
    return folder


@pytest.mark.parametrize("name", RECORDS)
def test_every_command_answers(
    checkpoint: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(checkpoint).model_copy(update={"record": RECORDS[name]})
    write_manifest(checkpoint, manifest)
    assert inspect(checkpoint).problem is None
    for command in (
        ["checkpoint", "list", str(checkpoint)],
        ["checkpoint", "verify", str(checkpoint)],
        ["checkpoint", "export", str(checkpoint), "--output", str(tmp_path / "hf")],
        ["generate", str(checkpoint), "--prompt", "a"],
        ["eval", str(checkpoint), "--data", str(tmp_path / "none")],
    ):
        assert main(command) in (ExitCode.DONE, ExitCode.BAD_INPUT)
    out, error = capfd.readouterr()
    assert "\x1b[2J" not in out + error
    assert "triax: error: " in error


@pytest.mark.parametrize("fault", [KeyError("step"), TypeError(), RuntimeError("ragged")])
def test_a_record_that_a_run_cannot_go_on_with(fault: Exception) -> None:
    with pytest.raises(UserError, match="isn't one that a run writes"), record_errors():
        raise fault


def test_a_user_s_mistake_is_said_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^mine$"), record_errors():
        raise UserError("mine")


def test_an_exported_model_holds_no_more_than_the_config_says(tmp_path: Path) -> None:
    record = {"config": {"model": MODEL, "data": {"seq_len": 8}}}
    tensors = {"model.extra": whole(torch.zeros(2))}
    model = Transformer(recorded_model(MODEL))
    tensors |= {f"model.{name}": whole(p.detach()) for name, p in model.named_parameters()}
    write_checkpoint(tmp_path / "step-00000001", tensors, record, step=1)
    argv = ["checkpoint", "export", str(tmp_path), "--output", str(tmp_path / "hf")]
    assert main(argv) == ExitCode.BAD_INPUT
    assert main(["generate", str(tmp_path)]) == ExitCode.BAD_INPUT
