"""What blocks keep: against what autograd is seen to save, and against Korthikanti et al. 2022."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from triax.models.architecture import Attention, FeedForward, FeedForwardKind, Layer, Norm, NormKind
from triax.models.families import model_config
from triax.models.layers.block import Block
from triax.models.layers.rotary import rotary_table
from triax.parallel.recompute import checkpoint_activations
from triax.planning.activations import Kind, Rules, bytes_per_token

NUM_TOKENS = 64
SHAPE = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "vocab_size": 128}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "num_kv_heads": 2, "ffn_hidden_size": 192},
    "qwen3": {**SHAPE, "num_kv_heads": 2, "ffn_hidden_size": 192, "qk_norm": True},
    "gpt2": {**SHAPE, "family": "gpt2"},
    "experts": {
        **SHAPE,
        "num_kv_heads": 2,
        "ffn_hidden_size": 192,
        "experts": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 32, "num_shared_experts": 1},
    },
}


def saved_bytes(model: dict[str, Any], kind: str, dtype: torch.dtype) -> float:
    """What a block's forward pass gives to autograd for each token, weights (and a router's in
    fp32) and angles apart."""
    config = model_config(**model)
    layer = config.architecture().layers[0]
    block = Block(layer, config.hidden_size).to(dtype)
    checkpoint_activations(block, kind)
    rotary = rotary_table(layer.attention, NUM_TOKENS, torch.device("cpu"))
    x = torch.randn(1, NUM_TOKENS, config.hidden_size, dtype=dtype, requires_grad=True)
    others = {p.untyped_storage()._cdata for p in block.parameters()}
    if rotary is not None:
        others.add(rotary.untyped_storage()._cdata)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        is_weight = tensor.shape[-2:] in ((8, 64), (64, 8))
        if tensor.untyped_storage()._cdata not in others and not is_weight:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x, rotary, None, torch.ones(1, NUM_TOKENS))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / NUM_TOKENS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["none", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_block_keeps_what_is_forecast(name: str, kind: Kind, dtype: torch.dtype) -> None:
    config = model_config(**MODELS[name])
    layer = config.architecture().layers[0]
    rules = Rules(size=dtype.itemsize, size_of_inputs=dtype.itemsize, on_cpu=True)
    forecast = bytes_per_token(layer, config.hidden_size, NUM_TOKENS, kind, rules)
    counted = saved_bytes(MODELS[name], kind, dtype)
    if kind == "full":
        choice = 8 * 2 if name == "experts" else 0
        assert forecast == config.hidden_size * dtype.itemsize + choice
        return
    assert forecast == pytest.approx(counted, rel=0.05)


# Korthikanti et al. 2022, table 3: heads, hidden size, tensor processes; s = 2048, b = micro-batch.
KORTHIKANTI = [(64, 6144, 4), (96, 12288, 1), (128, 20480, 1), (160, 25600, 1)]
SEQ_LEN, TENSOR = 2048, 8


def megatron_layer(num_heads: int, hidden: int) -> Layer:
    norm = Norm(NormKind.LAYER, 1e-5)
    return Layer(
        norm,
        Attention(num_heads, num_heads, hidden // num_heads, has_bias=True),
        FeedForward(FeedForwardKind.GELU, 4 * hidden, has_bias=True),
    )


def megatron(**options: Any) -> Rules:
    return Rules(size=2, keeps_scores=True, has_dropout=True, gathers_again=True, **options)


@pytest.mark.parametrize(("heads", "hidden", "_batch"), KORTHIKANTI)
def test_the_terms_are_korthikantis_formulas(heads: int, hidden: int, _batch: int) -> None:
    """Table 2: sbh(34 + 5as/h) on one process, sbh(10 + 24/t + 5as/(ht)) with tensor parallelism,
    sbh/t (34 + 5as/h) with sequence parallelism."""
    layer = megatron_layer(heads, hidden)
    scores = 5 * heads * SEQ_LEN / hidden
    expected = {
        megatron(): 34 + scores,
        megatron(tensor=TENSOR): 10 + 24 / TENSOR + scores / TENSOR,
        megatron(tensor=TENSOR, divides_tokens=True): (34 + scores) / TENSOR,
    }
    for rules, factor in expected.items():
        forecast = bytes_per_token(layer, hidden, SEQ_LEN, "none", rules)
        assert forecast == pytest.approx(hidden * factor, rel=0.01)


@pytest.mark.parametrize(("heads", "hidden", "_batch"), KORTHIKANTI)
def test_without_the_scores_it_is_34_sbh(heads: int, hidden: int, _batch: int) -> None:
    """Table 2, selective recomputation of attention's core: sbh(34/t)."""
    rules = Rules(size=2, has_dropout=True, gathers_again=True, tensor=TENSOR, divides_tokens=True)
    forecast = bytes_per_token(megatron_layer(heads, hidden), hidden, SEQ_LEN, "none", rules)
    assert forecast == pytest.approx(34 * hidden / TENSOR, rel=0.01)


def test_full_checkpointing_is_2_sbh() -> None:
    layer = megatron_layer(96, 12288)
    assert bytes_per_token(layer, 12288, SEQ_LEN, "full", megatron(tensor=TENSOR)) == 2 * 12288
