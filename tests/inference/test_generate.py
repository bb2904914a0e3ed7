"""Sampling."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from triax.common.errors import UserError
from triax.inference.generate import generate
from triax.inference.sampling import Sampling
from triax.models.families import model_config
from triax.models.layers.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        model_config(
            num_layers=1, hidden_size=16, num_heads=2, ffn_hidden_size=16, vocab_size=20,
            init_std=1.0,
        )
    )  # fmt: skip


def write(model: Transformer, **options: Any) -> list[int]:
    names = {field.name for field in fields(Sampling)}
    drawing = {"temperature": 0.8, "top_k": 50} | {k: v for k, v in options.items() if k in names}
    settings: dict[str, Any] = {"max_new_tokens": 12, "context": 8, "seed": 1}
    settings |= {name: value for name, value in options.items() if name not in names}
    return list(generate(model, [3, 4], sampling=Sampling(**drawing), **settings))


def test_temperature_zero_takes_the_likeliest(model: Transformer) -> None:
    [first, *_] = write(model, temperature=0)
    assert first == int(model.logits(torch.tensor([[3, 4]]))[0, -1].argmax())
    assert write(model, temperature=0, seed=1) == write(model, temperature=0, seed=2)


def test_draws_depend_on_the_seed_alone(model: Transformer) -> None:
    assert write(model, seed=1) == write(model, seed=1)
    assert write(model, seed=1) != write(model, seed=2)


def test_top_one_is_the_likeliest(model: Transformer) -> None:
    assert write(model, top_k=1) == write(model, temperature=0)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model: Transformer) -> None:
    text = write(model)
    stopped = write(model, stop_tokens=[text[5]])
    assert stopped == text[: text.index(text[5])]


@pytest.mark.parametrize("temperature", [1e-45, 5e-324, 1e-300])
def test_the_lowest_temperatures_take_the_likeliest(model: Transformer, temperature: float) -> None:
    assert write(model, temperature=temperature) == write(model, temperature=0)


def test_the_highest_temperature_and_the_largest_seed_draw(model: Transformer) -> None:
    assert len(write(model, temperature=1.7e308, seed=2**64 - 1)) == 12


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_logits_that_are_not_finite_are_told(temperature: float) -> None:
    broken = Transformer(
        model_config(num_layers=1, hidden_size=16, num_heads=2, ffn_hidden_size=16, vocab_size=20)
    )
    for weight in broken.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="logits aren't finite"):
        write(broken, temperature=temperature)
