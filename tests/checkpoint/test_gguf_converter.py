"""llama.cpp's own converter takes exported folders: all families, every element.

It is a script of llama.cpp's repository and in no package: `TRIAX_LLAMA_CPP` names a checkout, for
instance what the source package `llama-cpp-python` has under `vendor/llama.cpp`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from triax.checkpoint.huggingface import export_huggingface
from triax.checkpoint.huggingface_tokenizer import TokenizerExport
from triax.data.prepare.tokenizer import train_tokenizer
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer

gguf = pytest.importorskip("gguf", reason="reads what the converter writes (pip install gguf)")
CHECKOUT = os.environ.get("TRIAX_LLAMA_CPP")
pytestmark = pytest.mark.skipif(CHECKOUT is None, reason="TRIAX_LLAMA_CPP names no llama.cpp")

SIZES = dict(num_layers=2, hidden_size=64, num_heads=4, ffn_hidden_size=96, vocab_size=300)
EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "tie_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen3": {"qk_norm": True, "head_dim": 32},
    "gpt2": {"family": "gpt2", "num_positions": 16, "tie_embeddings": True},
    "mixtral": {"ffn_hidden_size": 32, "experts": EXPERTS},
    "qwen3_moe": {"qk_norm": True, "experts": EXPERTS},
    "olmoe": {
        "joint_qk_norm": True, "ffn_hidden_size": 32, "experts": EXPERTS | {"normalise": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text("the cat sat on a mat, and the dog ran past it. " * 20)
    train_tokenizer([str(folder / "text")], 300, folder)
    return folder


def convert(script: Path, folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [script, folder, "--outfile", output, "--outtype", "f32"]
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False,
        timeout=500,
    )  # fmt: skip


def taught(folder: Path, said: str) -> Path:
    """A copy of the converter that knows the checksum which it has printed."""
    [checksum] = [line.split()[-1] for line in said.splitlines() if "chkhsh:" in line]
    assert CHECKOUT is not None
    script = folder / "convert_hf_to_gguf.py"
    shutil.copy(Path(CHECKOUT) / script.name, script)
    for name in ("conversion", "gguf-py"):
        if (Path(CHECKOUT) / name).exists():
            shutil.copytree(Path(CHECKOUT) / name, folder / name)
    known = f'        if chkhsh == "{checksum}":\n            res = "gpt-2"\n'
    for file in (script, folder / "conversion/base.py"):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if (end := "        if res is None:\n            logger.warning") in text:
            file.write_text(text.replace(end, known + end), encoding="utf-8")
    return script


@pytest.mark.parametrize("kind", MODELS)
def test_it_keeps_every_element(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    """Its tensors may lie otherwise (rotated heads, experts in one), so all are compared sorted."""
    assert CHECKOUT is not None
    config = model_config(**SIZES | MODELS[kind])
    model = Transformer(config)
    initialise_model(model, model.description, seed=2)
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = {name: tensor.detach() for name, tensor in named}
    ids: dict[str, int | list[int]] = {"bos_token_id": 0, "eos_token_id": 0}
    export_huggingface(
        tensors, config, tmp_path / "hf", seq_len=16,
        tokenizer=TokenizerExport(tokenizer, {"eos_token": "<|endoftext|>"}, ids),
    )  # fmt: skip
    ended = convert(Path(CHECKOUT) / "convert_hf_to_gguf.py", tmp_path / "hf", tmp_path / "a.gguf")
    assert "BPE pre-tokenizer was not recognized" in ended.stderr, ended.stderr
    script = taught(tmp_path, ended.stderr)
    ended = convert(script, tmp_path / "hf", tmp_path / "a.gguf")
    assert ended.returncode == 0, ended.stderr
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    found = np.concatenate([tensor.data.ravel() for tensor in reader.tensors])
    exported = load_file(tmp_path / "hf/model.safetensors")
    expected = torch.cat([tensor.flatten() for tensor in exported.values()]).numpy()
    assert np.array_equal(np.sort(found), np.sort(expected))
    kept = {
        name: reader.get_field(f"tokenizer.ggml.{name}").contents() for name in ("pre", "model")
    }
    assert kept == {"pre": "gpt-2", "model": "gpt2"}
    architecture = reader.get_field("general.architecture").contents()
    assert reader.get_field(f"{architecture}.context_length").contents() == 16
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == 0
