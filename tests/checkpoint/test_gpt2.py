"""GPT-2's folders against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from triax.checkpoint.huggingface import export_huggingface, import_huggingface
from triax.common.errors import UserError
from triax.models.layers.transformer import Transformer

transformers = pytest.importorskip("transformers")

SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "other inner width": {"n_inner": 40},
    "odd sizes": {"n_embd": 18, "n_head": 3, "vocab_size": 51, "n_positions": 17},
    "untied": {"tie_word_embeddings": False},
    "large eps": {"layer_norm_epsilon": 1e-2},
    "other name of the same GELU": {"activation_function": "gelu_pytorch_tanh"},
}


def their_model(shape: str) -> Any:
    """With biases and norms that show in the logits, unlike initial ones."""
    config = transformers.GPT2Config(
        **{"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
        | SHAPES[shape]
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_there_and_back(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    """Our logits are theirs, and what is written again is to the bit what was read."""
    theirs = their_model(shape).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    config, weights = import_huggingface(tmp_path / "theirs")
    model = Transformer(config)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)
    tokens_BT = torch.randint(config.vocab_size, (3, theirs.config.n_positions))
    ours_BTV, theirs_BTV = model.logits(tokens_BT), theirs.float()(tokens_BT).logits
    assert ours_BTV.std() > 0.1
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=0, atol=1e-5)
    export_huggingface(weights, config, tmp_path / "ours", seq_len=8)
    read, written = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in read)
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    torch.testing.assert_close(loaded.eval()(tokens_BT).logits, theirs_BTV, rtol=0, atol=1e-6)


def test_gpt2s_own_files(tmp_path: Path) -> None:
    """They are of the model without a head, and hold the causal mask."""
    theirs = their_model("usual")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    _, expected = import_huggingface(tmp_path)
    old = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    mask = torch.ones(1, 1, 24, 24).tril()
    save_file(old | {"h.0.attn.bias": mask, "h.1.attn.masked_bias": torch.tensor(-1e4)}, path)
    _, found = import_huggingface(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_layer": 3}, "missing: transformer.h.2"),
        ({"n_layer": 1}, "unknown: transformer.h.1"),
        ({"n_layer": 10**9}, "less than or equal to 10000"),
        ({"n_layer": "2"}, "num_layers"),
        ({"n_inner": 20}, "expects \\(20, 32\\)"),
        ({"n_head": 5}, "not a multiple of num_heads"),
        ({"n_positions": 9}, "expects \\(9, 32\\)"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    their_model("usual").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        import_huggingface(tmp_path)


def test_a_config_without_a_field_is_refused(tmp_path: Path) -> None:
    their_model("usual").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["n_embd"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="n_embd"):
        import_huggingface(tmp_path)
