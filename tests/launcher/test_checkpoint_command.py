"""`triax checkpoint`, through the CLI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from triax.checkpoint.huggingface import import_huggingface
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.store import CheckpointStore
from triax.common.errors import ExitCode
from triax.launcher.cli import main
from triax.models.families import model_config
from triax.models.layers.transformer import Transformer

MODEL = model_config(
    num_layers=2,
    hidden_size=16,
    num_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=24,
    vocab_size=40,
    tie_embeddings=True,
    qk_norm=True,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two checkpoints, as training leaves them."""
    torch.manual_seed(0)
    model = Transformer(MODEL)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"optimizer.{name}.exp_avg": p.detach() for name, p in model.named_parameters()}
    directory = tmp_path / "run"
    store = CheckpointStore(
        directory / "checkpoints", keep=3, asynchronous=False, deadline_seconds=60
    )
    config: dict[str, Any] = {
        "model": MODEL.model_dump(mode="json"),
        "data": {"seq_len": 32, "tokenizer": None},
    }
    for step in (100, 200):
        store.save(step, tensors, {"step": step, "tokens": step * 1000, "config": config})
        outcome = store.wait()
        assert outcome is not None and outcome.error is None
    return directory


def damage(run_dir: Path, step: int) -> None:
    path = run_dir / "checkpoints" / f"step-{step:08d}" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


def test_list(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "list", str(run_dir)]) == ExitCode.DONE
    title, header, first, second, note = capsys.readouterr().out.splitlines()
    assert title == str(run_dir / "checkpoints")
    assert header.split() == ["step", "tokens", "size", "age", "files"]
    assert first.split()[:2] == ["100", "100K"] and first.split()[-1] == "complete"
    assert second.split()[:2] == ["200", "200K"] and "kB" in second
    assert all(len(line) <= 80 for line in (header, first, second, note))


def test_list_shows_what_is_bad(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "checkpoints" / "step-00000100" / "manifest.json").unlink()
    (run_dir / "checkpoints" / "step-00000200" / "__0_0.distcp").write_bytes(b"cut")
    assert main(["checkpoint", "list", str(run_dir)]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.count("  bad\n") == 2
    assert "no manifest.json" in out and "__0_0.distcp: 3 bytes, expected" in out


def test_verify(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run_dir)]) == ExitCode.DONE
    assert capsys.readouterr().out.count(": good") == 2
    damage(run_dir, 100)
    assert main(["checkpoint", "verify", str(run_dir)]) == ExitCode.BAD_INPUT
    out = capsys.readouterr().out
    assert "step-00000100: bad\n  __0_0.distcp: damaged" in out and "step-00000200: good" in out
    newest = run_dir / "checkpoints" / "step-00000200"
    assert main(["checkpoint", "verify", str(newest)]) == ExitCode.DONE
    assert main(["checkpoint", "verify", str(newest.with_name("step-00000100"))]) == 2


def test_export_then_import(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, back = tmp_path / "hf", tmp_path / "imported"
    assert main(["checkpoint", "export", str(run_dir), "--output", str(output)]) == ExitCode.DONE
    assert "step-00000200 exported" in capsys.readouterr().out
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] == 32
    assert main(["checkpoint", "import", str(output), "--output", str(back)]) == ExitCode.DONE
    original = read_tensors(run_dir / "checkpoints" / "step-00000200", prefix="model.")
    imported = read_tensors(back)
    assert imported.keys() == original.keys()
    assert all(torch.equal(imported[name], original[name]) for name in original)
    assert main(["checkpoint", "verify", str(back)]) == ExitCode.DONE
    # An imported checkpoint is exported again, once told what no run has recorded.
    again = ["checkpoint", "export", str(back), "--output", str(tmp_path / "again")]
    assert main(again) == ExitCode.BAD_INPUT
    assert "--seq-len" in capsys.readouterr().err
    assert main([*again, "--seq-len", "32"]) == ExitCode.DONE
    for file in output.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_export_falls_back_to_a_good_one(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run_dir, 200)
    arguments = ["checkpoint", "export", str(run_dir), "--output", str(tmp_path / "hf")]
    assert main([*arguments, "--format", "hf", "--dtype", "bf16"]) == ExitCode.DONE
    assert "step-00000100 exported" in capsys.readouterr().out
    _, tensors = import_huggingface(tmp_path / "hf")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    newest = str(run_dir / "checkpoints" / "step-00000200")
    arguments = ["checkpoint", "export", newest, "--output", str(tmp_path / "other")]
    assert main(arguments) == ExitCode.BAD_INPUT
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{tmp}/nowhere"], "no checkpoint here"),
        (["verify", "{tmp}/nowhere/step-00000001"], "no checkpoint here"),
        (["export", "{tmp}", "--output", "{tmp}/new"], "no checkpoint here"),
        (["export", "{run}", "--output", "{run}"], "exists already"),
        (["export", "{run}", "--output", "{tmp}/new", "--tokenizer", "{tmp}/t"], "tokenizer.json"),
        (["import", "{tmp}/nowhere", "--output", "{tmp}/new"], "not a folder"),
        (["import", "{tmp}", "--output", "{tmp}/new"], "no weights"),
        (["import", "{tmp}", "--output", "{run}"], "exists already"),
    ],
)
def test_mistakes_exit_2_with_a_reason(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    filled = [argument.format(tmp=tmp_path, run=run_dir) for argument in arguments]
    assert main(["checkpoint", *filled]) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_an_import_that_cannot_be_written(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["checkpoint", "export", str(run_dir), "--output", str(tmp_path / "hf")])
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "checkpoint")
    code = main(["checkpoint", "import", str(tmp_path / "hf"), "--output", output])
    assert code == ExitCode.BAD_INPUT
    assert "cannot be written" in capsys.readouterr().err
