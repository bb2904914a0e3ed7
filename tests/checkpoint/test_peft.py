"""Adapters to PEFT and back, merged, and kept apart from the weights that they stand beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from worlds import SMALL

from triax.checkpoint.folders import inspect
from triax.checkpoint.huggingface import export_huggingface
from triax.checkpoint.importing import import_adapters, import_checkpoint
from triax.checkpoint.model import load_model
from triax.checkpoint.peft import CONFIG_FILE, export_peft, import_peft, merged
from triax.checkpoint.reading import count_tensors
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.families import model_config
from triax.models.init import initialise
from triax.models.lora import LoraConfig

LORA = {"rank": 3, "alpha": 6.5}
MODEL = {**SMALL, "z_loss": 0.0}
EXPERTS = MODEL | {
    "experts": {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 16, "layer_step": 2}
}
TOKENS_BT = torch.arange(20).view(2, 10)


def weights_of(config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base's, and factors none of which is zero."""
    base, factors = {}, {}
    for number, (name, row) in enumerate(describe(config).parameters.items()):
        tensor = torch.empty(row.shape)
        initialise(tensor, row, [0] * tensor.ndim, seed=7)
        if row.is_trained:
            factors[name] = torch.randn(row.shape, generator=torch.Generator().manual_seed(number))
        else:
            base[name] = tensor
    return base, factors


def make_folders(folder: Path, model: dict[str, Any], lora: dict[str, Any]) -> ModelConfig:
    """`hf/`, the same as a checkpoint in `start/`, and the adapters in `peft/`."""
    config = model_config(**model, lora=lora)
    base, factors = weights_of(config)
    export_huggingface(base, config.without_adapters, folder / "hf", seq_len=32)
    import_checkpoint(folder / "hf", folder / "start")
    export_peft(factors, config, folder / "peft", base=str(folder / "hf"))
    return config


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        (MODEL, LORA),
        (MODEL, LORA | {"rslora": True, "targets": ["query", "down"]}),
        (EXPERTS, LORA | {"targets": ["query", "key", "value", "output"]}),
    ],
    ids=["all", "some", "experts"],
)
def test_peft_loads_what_we_write_and_computes_the_same(
    tmp_path: Path, model: dict[str, Any], lora: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    config = make_folders(tmp_path, model, lora)
    import_adapters(tmp_path / "peft", tmp_path / "adapters", tmp_path / "start")
    ours = load_model(tmp_path / "adapters", config).logits(TOKENS_BT)
    base, factors = weights_of(config)
    assert config.lora is not None
    weights = merged(base, factors, config.lora)
    export_huggingface(weights, config.without_adapters, tmp_path / "merged", seq_len=32)
    with torch.no_grad():
        load = transformers.AutoModelForCausalLM.from_pretrained
        plain = load(tmp_path / "hf", dtype=torch.float32)
        without = plain(TOKENS_BT).logits
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "peft")(TOKENS_BT).logits
        in_one = load(tmp_path / "merged", dtype=torch.float32)(TOKENS_BT).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(in_one, theirs, rtol=1e-5, atol=2e-5)
    assert (ours - without).abs().max() > 0.1, "the adapters do something"


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    config = make_folders(tmp_path, MODEL, LORA)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    settings = peft.LoraConfig(
        r=5, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "gate_proj"],
        init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(plain, settings).eval()
    theirs.save_pretrained(tmp_path / "written")
    model = import_adapters(tmp_path / "written", tmp_path / "read", tmp_path / "start")
    assert model.lora == LoraConfig(rank=5, alpha=8, targets=("query", "value", "gate"))
    with torch.no_grad():
        expected = theirs(TOKENS_BT).logits
    logits = load_model(tmp_path / "read", model).logits(TOKENS_BT)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)
    assert import_peft(tmp_path / "peft", config.without_adapters)[0] == config


def test_adapters_of_another_kind_are_refused(tmp_path: Path) -> None:
    config = make_folders(tmp_path, MODEL, LORA).without_adapters
    path = tmp_path / "peft" / CONFIG_FILE
    known = json.loads(path.read_text())
    for change, expected in (
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": "many"}, "rank: "),
        ({"r": 4}, "expected (4, 32)"),
        ({"lora_alpha": None}, "alpha: "),
    ):
        path.write_text(json.dumps(known | change))
        with pytest.raises(UserError, match="peft") as raised:
            import_peft(tmp_path / "peft", config)
        assert expected in str(raised.value)
    path.write_text(json.dumps(known))
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file({f"{first}.more": tensors[first].clone(), **tensors}, weights)
    with pytest.raises(UserError, match="is no adapter of a layer"):
        import_peft(tmp_path / "peft", config)
    save_file({n: t for n, t in tensors.items() if n != first}, weights)
    with pytest.raises(UserError, match="missing, expected"):
        import_peft(tmp_path / "peft", config)
    gpt2 = {"family": "gpt2", "num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 96}
    for other in (gpt2, EXPERTS):
        with pytest.raises(UserError, match="--format hf"):
            export_peft({}, model_config(**other, lora=LORA), tmp_path / "none", base="")


def test_adapters_are_small_and_know_what_they_stand_beside(tmp_path: Path) -> None:
    config = make_folders(tmp_path, MODEL, LORA)
    import_adapters(tmp_path / "peft", tmp_path / "adapters", tmp_path / "start")
    adapters, start = inspect(tmp_path / "adapters").manifest, inspect(tmp_path / "start").manifest
    assert adapters is not None and start is not None
    assert count_tensors(tmp_path / "adapters") == len(describe(config).trained)
    assert adapters.record["base"]["digest"] == start.digest
    base = tmp_path / "start"
    base.rename(tmp_path / "away")
    with pytest.raises(UserError, match="there is no checkpoint at"):
        load_model(tmp_path / "adapters", config)
    other = model_config(**MODEL)
    weights = {n: t + 1 for n, t in weights_of(config)[0].items()}
    export_huggingface(weights, other, tmp_path / "other", seq_len=32)
    import_checkpoint(tmp_path / "other", base)
    with pytest.raises(UserError, match=r"holds others\. Put that checkpoint back"):
        load_model(tmp_path / "adapters", config)
    with pytest.raises(UserError, match="holds adapters itself"):
        import_adapters(tmp_path / "peft", tmp_path / "twice", tmp_path / "adapters")
