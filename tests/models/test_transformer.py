"""The transformer's parts against naive definitions. Hugging Face parity is in tests/checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from triax.models.description import Parameter, Role, describe
from triax.models.families import model_config
from triax.models.init import initialise, initialise_model
from triax.models.layers.masks import attention_mask
from triax.models.layers.rotary import rotary_table, rotate
from triax.models.layers.transformer import Transformer

SHAPE = dict(
    num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, ffn_hidden_size=64, vocab_size=50
)


def make_model(**changes: object) -> Transformer:
    config = model_config(**SHAPE | changes)
    model = Transformer(config)
    initialise_model(model, model.description, seed=1)
    return model


@torch.no_grad()
def test_a_token_depends_on_no_later_token() -> None:
    model, tokens = make_model(), torch.randint(0, 50, (2, 10))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    torch.testing.assert_close(model.logits(tokens)[:, :6], model.logits(changed)[:, :6])
    assert not torch.allclose(model.logits(tokens)[:, 6:], model.logits(changed)[:, 6:])


@torch.no_grad()
def test_a_packed_document_is_as_if_alone() -> None:
    """RoPE sees only differences of positions, so a document's place in the row is no matter."""
    model = make_model(qk_norm=True)
    first, second = torch.randint(0, 50, (1, 5)), torch.randint(0, 50, (1, 7))
    ids = torch.tensor([[0] * 5 + [1] * 7])
    packed = model.logits(torch.cat((first, second), 1), ids)
    torch.testing.assert_close(packed[:, :5], model.logits(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 5:], model.logits(second), rtol=1e-4, atol=1e-5)


def test_attention_mask_against_its_definition() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1, 1]])
    mask = attention_mask(ids, 8, 3, torch.device("cpu"))
    assert mask is not None
    for row in range(2):
        for query in range(8):
            for key in range(8):
                seen = key <= query and query - key < 3 and bool(ids[row, query] == ids[row, key])
                assert bool(mask[row, 0, query, key]) == seen
    assert attention_mask(None, 8, None, torch.device("cpu")) is None
    assert attention_mask(None, 8, 8, torch.device("cpu")) is None


def test_rotary_positions_against_complex_numbers() -> None:
    config = model_config(**SHAPE | {"rope_theta": 100.0})
    layer = config.architecture().layers[0].attention
    x = torch.randn(1, 6, 2, layer.head_dim)
    table = rotary_table(layer, 6, torch.device("cpu"))
    assert table is not None
    turned = rotate(x, table)
    half = layer.head_dim // 2
    for position in range(6):
        for pair in range(half):
            angle = position * 100.0 ** (-2 * pair / layer.head_dim)
            number = torch.complex(x[0, position, :, pair], x[0, position, :, pair + half])
            expected = number * complex(math.cos(angle), math.sin(angle))
            torch.testing.assert_close(turned[0, position, :, pair], expected.real)
            torch.testing.assert_close(turned[0, position, :, pair + half], expected.imag)


@torch.no_grad()
def test_the_softcap_bounds_the_logits() -> None:
    tokens = torch.randint(0, 50, (1, 8))
    assert make_model(init_std=3.0).logits(tokens).abs().max() > 2
    assert make_model(init_std=3.0, logit_softcap=2.0).logits(tokens).abs().max() <= 2


def test_tied_embeddings_are_one_parameter() -> None:
    model = make_model(tie_embeddings=True)
    assert model.head is not None and model.embedding is not None
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())


def fill(shape: tuple[int, int], offset: tuple[int, int], whole: tuple[int, int]) -> Tensor:
    part = torch.empty(shape)
    up = Parameter("blocks.0.mlp.up.weight", whole, Role.COLUMN, 0, init_std=0.02)
    initialise(part, up, offset, seed=5)
    return part


def test_any_slice_of_a_parameter_can_be_made_alone() -> None:
    whole = fill((64, 32), (0, 0), (64, 32))
    torch.testing.assert_close(fill((10, 32), (7, 0), (64, 32)), whole[7:17], rtol=0, atol=0)
    torch.testing.assert_close(fill((64, 8), (0, 16), (64, 32)), whole[:, 16:24], rtol=0, atol=0)
    assert fill((0, 32), (64, 0), (64, 32)).shape == (0, 32)


def test_initial_weights_are_normal_and_differ_by_name_and_seed() -> None:
    parts = []
    for name, seed in (("a.weight", 0), ("a.weight", 1), ("b.weight", 0)):
        part = torch.empty(1500, 1000)
        initialise(part, Parameter(name, (1500, 1000), Role.COLUMN, 0, 0.02), (0, 0), seed)
        parts.append(part / 0.02)
    for part in parts:
        flat = part.flatten().double()
        assert abs(flat.mean()) < 0.005
        assert abs(flat.std() - 1) < 0.005
        assert abs((flat**4).mean() - 3) < 0.05
        assert abs((flat[1:] * flat[:-1]).mean()) < 0.005
        assert abs((part[1:] * part[:-1]).mean()) < 0.005
    assert abs((parts[0] * parts[1]).mean()) < 0.005
    assert abs((parts[0] * parts[2]).mean()) < 0.005


@pytest.mark.parametrize("name", ["blocks.1.attention.output.weight", "blocks.1.mlp.down.weight"])
def test_what_writes_to_the_residual_stream_starts_smaller(name: str) -> None:
    config = model_config(**SHAPE | {"num_layers": 8, "hidden_size": 128, "ffn_hidden_size": 256})
    parameter = describe(config).parameters[name]
    part = torch.empty(parameter.shape)
    initialise(part, parameter, (0, 0), seed=0)
    assert part.std().item() == pytest.approx(config.init_std / 4, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_positions_may_be_given(family: str) -> None:
    """From 0 on they change no bit; a shift changes learned vectors, but no rotary attention."""
    sizes = dict(num_layers=2, hidden_size=32, num_heads=2, ffn_hidden_size=48, vocab_size=50)
    model = Transformer(model_config(family=family, **sizes, init_std=0.3))
    tokens = torch.randint(0, 50, (2, 8))
    from_zero = torch.arange(8).expand(2, 8)
    plain = model.hidden_states(tokens, 8)
    assert torch.equal(model.hidden_states(tokens, 8, None, from_zero), plain)
    shifted = model.hidden_states(tokens, 8, None, from_zero + 5)
    assert torch.allclose(shifted, plain, atol=1e-4) == (family == "llama")
    mixed = model.hidden_states(tokens, 8, None, from_zero * torch.tensor([[1], [3]]))
    assert torch.allclose(mixed[0], plain[0], atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-2)
