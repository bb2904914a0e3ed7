"""Models with experts against transformers: same names, same bytes, same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from triax.checkpoint.huggingface import export_huggingface, import_huggingface
from triax.common.errors import UserError
from triax.models.families import model_config, recorded_model
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer

transformers = pytest.importorskip("transformers")

EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 24}
SMALL: dict[str, Any] = {
    "num_layers": 3, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 61,
    "ffn_hidden_size": 40,
}  # fmt: skip
DEEPSEEK = {
    "num_experts": 8, "scores": "sigmoid", "bias_rate": 0.001, "num_shared_experts": 2,
    "num_groups": 4, "num_chosen_groups": 2, "scale": 2.5, "first_dense_layers": 1,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", {"ffn_hidden_size": 24, "sliding_window": 5}, {}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM", {"qk_norm": True, "head_dim": 16}, {"dense_layers": (1,)},
    ),
    "qwen3-moe, raw weights": (
        "Qwen3MoeForCausalLM", {"qk_norm": True}, {"normalise": False, "layer_step": 2},
    ),
    "olmoe": (
        "OlmoeForCausalLM", {"joint_qk_norm": True, "ffn_hidden_size": 24}, {"normalise": False},
    ),
    "dots.llm1": ("Dots1ForCausalLM", {"qk_norm": True}, DEEPSEEK),
}  # fmt: skip


def random_model(changes: dict[str, Any], experts: dict[str, Any]) -> Transformer:
    model = Transformer(_config(changes, experts))
    initialise_model(model, model.description, seed=2)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not name.endswith("load"):
                tensor += 0.1 * torch.randn(tensor.shape)
    return model


def _config(changes: dict[str, Any], experts: dict[str, Any]) -> Any:
    return model_config(**SMALL | changes | {"experts": EXPERTS | experts})


def tensors_of(model: Transformer) -> dict[str, torch.Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_exports_load_there_with_the_same_logits_and_come_back(kind: str, tmp_path: Path) -> None:
    architecture, changes, experts = KINDS[kind]
    model = random_model(changes, experts)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    export_huggingface(tensors, model.config, tmp_path / "theirs", seq_len=16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32
    ).eval()
    assert type(theirs).__name__ == architecture
    tokens = torch.randint(0, 61, (2, 16))
    torch.testing.assert_close(model.logits(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    for folder in ("theirs", "again"):
        config, back = import_huggingface(tmp_path / folder)
        assert back.keys() == tensors.keys()
        for name, tensor in back.items():
            assert torch.equal(tensor, tensors[name]) or name.endswith("load"), name
        again = Transformer(config)
        again.load_state_dict(back)
        assert torch.equal(again.logits(tokens), model.logits(tokens))


def test_an_expert_that_is_missing_or_too_many_is_refused(tmp_path: Path) -> None:
    """Megatron-LM #5844: a conversion dropped experts, and nothing said so."""
    model = random_model(*KINDS["qwen3-moe"][1:])
    export_huggingface(tensors_of(model), model.config, tmp_path / "a", seq_len=16)
    path = tmp_path / "a" / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    save_file({n: w for n, w in weights.items() if n != name}, path)
    with pytest.raises(UserError, match=f"missing: {name}"):
        import_huggingface(tmp_path / "a")
    save_file(weights | {name.replace("3.up", "4.up"): weights[name].clone()}, path)
    with pytest.raises(UserError, match=r"unknown: .*experts\.4\.up"):
        import_huggingface(tmp_path / "a")
    save_file(weights | {name: weights[name][1:].clone()}, path)
    with pytest.raises(UserError, match=r"mlp\.experts\.up"):
        import_huggingface(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "experts", "field"),
    [
        ({}, {"normalise": False}, "normalise"),
        ({"qk_norm": True}, {"num_shared_experts": 1}, "num_shared_experts"),
        ({"qk_norm": True}, {"bias_rate": 0.1}, "bias_rate"),
        ({"joint_qk_norm": True}, {"first_dense_layers": 1}, "first_dense_layers"),
        ({"qk_norm": True}, DEEPSEEK | {"bias_rate": 0.0}, "bias_rate"),
    ],
)  # fmt: skip
def test_what_no_architecture_there_computes(
    changes: dict[str, Any], experts: dict[str, Any], field: str, tmp_path: Path
) -> None:
    model = random_model(changes, experts)
    with pytest.raises(UserError, match=field):
        export_huggingface(tensors_of(model), model.config, tmp_path / "out", seq_len=16)


def test_records_hold_all_of_it() -> None:
    config = _config({"qk_norm": True}, {"dense_layers": (0,), "num_groups": 2,
                                         "num_chosen_groups": 2})  # fmt: skip
    assert recorded_model(config.model_dump(mode="json")) == config
