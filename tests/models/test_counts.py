"""Counts against published sizes and against the real model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.models.counts import flops_per_token, num_non_embedding_parameters, num_parameters
from triax.models.families import model_config
from triax.models.layers.transformer import Transformer
from triax.models.presets import PRESETS

PUBLISHED = {
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.2-1b-untied": 1_498_482_688,
    "llama3.2-3b-untied": 3_606_752_256,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
}


@pytest.mark.parametrize(("preset", "count"), PUBLISHED.items())
def test_llama_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    assert num_parameters(model_config(preset=preset)) == count


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("mini-10m", 10), ("mini-30m", 30), ("mini-50m", 50), ("llama-124m", 124)],
)
def test_other_presets_have_the_size_in_their_name(preset: str, millions: int) -> None:
    count = num_parameters(model_config(preset=preset))
    assert count == pytest.approx(millions * 1e6, rel=0.12)


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_are_those_of_the_model(preset: str) -> None:
    config = model_config(preset=preset)
    with torch.device("meta"):
        model = Transformer(config)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert model.embedding is not None and model.head is not None
    # Kaplan et al. (2020) leave out learned positions too.
    outside = {id(p) for p in (*model.embedding.parameters(), model.head.weight)}
    outside |= {id(p) for name, p in model.named_parameters() if name.startswith("positions.")}
    assert num_non_embedding_parameters(config) == sum(
        p.numel() for p in model.parameters() if id(p) not in outside
    )


@settings(deadline=None, max_examples=25)
@given(
    layers=st.integers(1, 3), heads=st.sampled_from([2, 4]), kv=st.sampled_from([1, 2]),
    ffn=st.integers(1, 40), vocab=st.integers(2, 50), seq_len=st.integers(1, 12),
)  # fmt: skip
def test_flops_are_those_of_the_matrix_products(
    layers: int, heads: int, kv: int, ffn: int, vocab: int, seq_len: int
) -> None:
    """Torch's own counter sees the forward pass; a backward pass costs twice as much."""
    from torch.utils.flop_counter import FlopCounterMode

    config = model_config(
        num_layers=layers, hidden_size=16, num_heads=heads, num_kv_heads=kv, head_dim=8,
        ffn_hidden_size=ffn, vocab_size=vocab,
    )  # fmt: skip
    model = Transformer(config)
    tokens_BT = torch.zeros(2, seq_len, dtype=torch.long)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model.logits(tokens_BT)
    assert 3 * counter.get_total_flops() == flops_per_token(config, seq_len) * 2 * seq_len


def test_published_flops() -> None:
    """PaLM, appendix B: 6N + 12LHQT; for Llama-3 8B at 8192 tokens 57.9 GFLOP a token."""
    config = model_config(preset="llama3-8b")
    multiplying = num_parameters(config) - 128256 * 4096 - (2 * 32 + 1) * 4096
    assert flops_per_token(config, 8192) == 6 * multiplying + 12 * 32 * 32 * 128 * 8192
