"""A checkpoint's model and tokenizer belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from triax.common.errors import ExitCode, UserError
from triax.inference.generate import generate
from triax.inference.load import Loaded
from triax.launcher.cli import main
from triax.models.config import ModelConfig
from triax.models.transformer import Transformer


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(tmp_path: Path) -> None:
    """Two tokens, but with a gap between their ids."""
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 20}, unk_token="a"))
    gaps.save(str(tmp_path / "tokenizer.json"))
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 16}
    small, large = (
        Loaded(tmp_path, Transformer(ModelConfig(**shape, vocab_size=size)), str(tmp_path), None)
        for size in (20, 21)
    )
    assert large.tokenizer().encode("b").ids == [20]
    with pytest.raises(UserError, match="has 21 tokens"):
        small.tokenizer()


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-30, 1e300])
def test_any_temperature_draws(temperature: float) -> None:
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 16}
    model = Transformer(ModelConfig(**shape, vocab_size=20))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 3, "context": 8}
    drawn = list(generate(model, [1], temperature=temperature, **settings))
    assert len(drawn) == 3
    if temperature < 1:
        assert drawn == list(generate(model, [1], temperature=0, **settings))


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_beyond_the_generators_is_refused(seed: str, capsys) -> None:
    assert main(["generate", "absent", "--seed", seed]) == ExitCode.BAD_INPUT
    assert f"--seed: expected a whole number from 0 to 2^63 - 1, got {seed}" in (
        capsys.readouterr().err
    )
