"""The table of a model's parameters against the modules that are built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.models.architecture import Architecture
from triax.models.config import ModelConfig
from triax.models.description import Description, Role, describe
from triax.models.families import FAMILIES, family_of, model_config, recorded_model
from triax.models.families.llama import LlamaConfig
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.models.presets import PRESETS

GPT2 = {"family": "gpt2", "num_layers": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 30}


Shape = tuple[str, tuple[int, ...]]


def rows_of(config: ModelConfig) -> tuple[list[Shape], list[Shape]]:
    """Names and shapes of the table and of the model, in order."""
    with torch.device("meta"):
        model = Transformer(config)
    described = describe(config)
    untrained = described.parameters.keys() - described.weights.keys()
    assert untrained == {name for name, _ in model.named_buffers()}
    table = [(name, row.shape) for name, row in described.weights.items()]
    return table, [(name, tuple(p.shape)) for name, p in model.named_parameters()]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_parameters_of_their_table(preset: str) -> None:
    table, model = rows_of(model_config(preset=preset))
    assert table == model


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_model_has_the_parameters_of_its_table(data: st.DataObject) -> None:
    heads = data.draw(st.sampled_from([1, 2, 4]))
    fields: dict[str, Any] = {
        "num_layers": data.draw(st.integers(1, 3)), "hidden_size": heads * 2, "num_heads": heads,
        "ffn_hidden_size": data.draw(st.integers(1, 9)), "vocab_size": 7,
        "tie_embeddings": data.draw(st.booleans()),
    }  # fmt: skip
    if data.draw(st.booleans()):
        fields |= {"qk_norm": data.draw(st.booleans()), "num_kv_heads": 1}
    else:
        fields |= {"family": "gpt2", "num_positions": data.draw(st.integers(1, 9))}
    table, model = rows_of(model_config(**fields))
    assert table == model


def test_gpt2s_table() -> None:
    """Sizes as published, GPT-2's initial values, and the roles of its parts."""
    rows = describe(model_config(preset="gpt2-124m")).parameters
    assert sum(row.num_elements for row in rows.values()) == 124_439_808
    assert rows["positions.weight"].shape == (1024, 768)
    assert rows["blocks.0.mlp.down.weight"].init_std == pytest.approx(0.02 / 24**0.5)
    assert rows["blocks.0.mlp.up.weight"].init_std == 0.02
    assert (rows["norm.weight"].init_value, rows["norm.bias"].init_value) == (1.0, 0.0)
    assert rows["blocks.3.attention.query.bias"].split_dimension == 0
    assert rows["blocks.3.attention.output.bias"].split_dimension is None
    assert rows["blocks.3.attention.output.weight"].split_dimension == 1
    assert not rows["blocks.3.mlp.up.bias"].decays and rows["positions.weight"].decays
    assert "head.weight" not in rows


def test_initial_values_follow_the_table() -> None:
    model = Transformer(model_config(**GPT2))
    initialise_model(model, model.description, seed=0)
    for name, row in model.description.parameters.items():
        weight = model.get_parameter(name)
        if row.init_std == 0:
            assert (weight == row.init_value).all()
        else:
            assert weight.std().item() == pytest.approx(row.init_std, rel=0.3)


def test_layers_may_differ() -> None:
    """Local and global attention by turns: each has its own mask, cost and rotary angles."""
    fields = dict(num_layers=2, hidden_size=8, num_heads=2, ffn_hidden_size=8, vocab_size=20)

    class Alternating(LlamaConfig):
        def architecture(self) -> Architecture:
            model = super().architecture()
            local, last = model.layers
            local = replace(local, attention=replace(local.attention, window=2, rotary=None))
            wide = replace(last.feed_forward, hidden_size=12)
            return replace(model, layers=(local, replace(last, feed_forward=wide)))

    model = Transformer(Alternating.model_validate(fields))
    initialise_model(model, model.description, seed=1)
    with mock.patch.object(model, "make_mask", wraps=model.make_mask) as make_mask:
        assert model.logits(torch.zeros(1, 6, dtype=torch.long)).isfinite().all()
    windows = [call.args[2] for call in make_mask.call_args_list]
    assert sorted(windows, key=str) == [2, None]
    described = model.description
    assert described.parameters["blocks.1.mlp.up.weight"].shape == (12, 8)
    local_cost, global_cost = described.layer_flops_per_token(100)
    attention = 12 * 2 * 4 * (100 - 2)
    assert global_cost - local_cost == attention + 6 * 3 * 4 * 8


def test_modules_that_read_whole_sequences() -> None:
    described: Description = describe(model_config(**GPT2))
    assert described.takes_whole_sequence("blocks.1.attention")
    assert described.takes_whole_sequence("blocks.0.mlp")
    assert not described.takes_whole_sequence("blocks.0")
    assert described.role_of_module("positions") is Role.POSITIONS
    assert described.role_of_module("blocks") is None


def test_a_familys_fields_are_its_own() -> None:
    with pytest.raises(ValueError, match="rope_theta"):
        model_config(**GPT2, rope_theta=1e4)
    with pytest.raises(ValueError, match="num_positions"):
        model_config(preset="llama-124m", num_positions=8)
    with pytest.raises(ValueError, match="is of the family 'gpt2'"):
        model_config(preset="gpt2-124m", family="llama")
    assert family_of({"preset": "gpt2-124m"}) == "gpt2"
    assert {PRESETS[name]["family"] for name in PRESETS} <= FAMILIES.keys()


def test_what_was_recorded_before_there_were_families() -> None:
    """The name of a preset may mean another shape today; all fields were recorded beside it."""
    recorded = model_config(preset="llama-124m").model_dump(mode="json")
    del recorded["family"]
    found = recorded_model(recorded | {"preset": "gpt2-124m"})
    assert describe(found).table == describe(model_config(preset="llama-124m")).table
