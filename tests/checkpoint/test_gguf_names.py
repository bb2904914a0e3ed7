"""llama.cpp's converter knows every tensor that an export has, by its own table of names.

The converter itself is a script of llama.cpp's repository; the table comes in the `gguf` package.
"""

from __future__ import annotations

from typing import Any

import pytest

from triax.checkpoint.formats import tensor_table, to_huggingface
from triax.models.families import model_config

gguf = pytest.importorskip("gguf", reason="needs llama.cpp's table of names (pip install gguf)")

SIZES = dict(num_layers=2, hidden_size=32, num_heads=4, ffn_hidden_size=48, vocab_size=64)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen3": {"qk_norm": True},
    "gpt2": {"family": "gpt2", "num_positions": 16, "tie_embeddings": True},
}
THEIRS = {"llama": "LLAMA", "mistral": "LLAMA", "qwen3": "QWEN3", "gpt2": "GPT2"}


@pytest.mark.parametrize("kind", MODELS)
def test_every_tensor_has_a_name_there(kind: str) -> None:
    model = model_config(**SIZES, **MODELS[kind])
    config = to_huggingface(model, dtype="float32", seq_len=16, special_tokens={})
    assert config["model_type"] == kind
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[THEIRS[kind]], model.num_layers)
    found = {
        theirs.name: names.get_name(theirs.name, try_suffixes=(".weight", ".bias"))
        for theirs in tensor_table(model)
    }
    assert all(found.values()), [name for name, known in found.items() if not known]
    assert len(set(found.values())) == len(found), "two tensors, one name"
