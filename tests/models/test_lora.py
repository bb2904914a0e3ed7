"""Adapters in a model: their rows of the table, their modules, and what they compute at first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from worlds import SMALL

from triax.models.counts import num_parameters
from triax.models.description import Role, describe
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.models.lora import LoraConfig
from triax.parallel.frozen import freeze

LORA = {"rank": 3, "alpha": 6.0}
GPT2 = {"family": "gpt2", "num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 96}
EXPERTS = SMALL | {"experts": {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 16}}


def with_lora(model: dict[str, Any], **changes: Any) -> Any:
    return model_config(**model, lora=LORA | changes)


@pytest.mark.parametrize("model", [SMALL, GPT2, EXPERTS], ids=["llama", "gpt2", "experts"])
def test_the_table_tells_the_modules_and_only_factors_are_trained(model: dict[str, Any]) -> None:
    config = with_lora(model)
    module, table = Transformer(config), describe(config)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        name: row.shape for name, row in table.weights.items()
    }
    assert [n for n, _ in module.named_parameters()] == list(table.weights)
    freeze(module, torch.bfloat16)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained == set(table.trained)
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained)
    dtypes = {n in trained: p.dtype for n, p in module.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    num_layers = 4 if model is EXPERTS else 6 if model is GPT2 else 7
    assert len(trained) == 2 * num_layers * config.num_layers


def test_tensor_parallelism_divides_the_factor_on_the_divided_side() -> None:
    rows = describe(with_lora(SMALL)).parameters
    for layer, split in (
        ("attention.query", "lora_b"),
        ("mlp.up", "lora_b"),
        ("mlp.down", "lora_a"),
    ):
        weight = rows[f"blocks.0.{layer}.weight"]
        for factor in ("lora_a", "lora_b"):
            row = rows[f"blocks.0.{layer}.{factor}"]
            assert row.role is (weight.role if factor == split else Role.FACTOR)


def test_a_new_model_computes_what_its_base_does() -> None:
    """A is spread as PEFT has it, the same whatever else is in the model, and B is zero."""
    plain, adapted = model_config(**SMALL), with_lora(SMALL, targets=["value", "down"])
    models = [Transformer(plain), Transformer(adapted)]
    for config, model in zip((plain, adapted), models, strict=True):
        initialise_model(model, describe(config), seed=5)
    tokens_BT = torch.arange(24).view(2, 12)
    torch.testing.assert_close(*(model.logits(tokens_BT) for model in models), rtol=0, atol=0)
    factors = dict(models[1].named_parameters())
    a = factors["blocks.1.mlp.down.lora_a"].detach()
    bound = a.shape[1] ** -0.5
    assert 0.9 * bound < a.abs().max() <= bound and abs(a.mean()) < 0.2 * bound
    assert a.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_products_of_frozen_weights_have_no_gradient_of_their_own() -> None:
    """4 FLOPs an element in place of 6; the factors have 6."""
    plain, adapted = describe(model_config(**SMALL)), describe(with_lora(SMALL))
    for name, row in plain.parameters.items():
        assert 3 * adapted.parameters[name].flops_per_token == 2 * row.flops_per_token
    factor = adapted.parameters["blocks.0.mlp.up.lora_a"]
    assert factor.flops_per_token == 6 * factor.num_elements
    assert num_parameters(with_lora(SMALL)) - num_parameters(model_config(**SMALL)) == sum(
        row.num_elements for row in adapted.trained.values()
    )


def test_the_scale() -> None:
    assert LoraConfig(rank=16, alpha=32).scale == 2
    assert LoraConfig(rank=16, alpha=32, rslora=True).scale == 8
    assert LoraConfig(rank=1, alpha=1, targets=("up", "query", "up")).targets == ("query", "up")
    with pytest.raises(ValidationError):
        LoraConfig(rank=1, alpha=1, targets=())
