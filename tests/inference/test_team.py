"""Several processes that share a model write and find what one does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fleet import run_fleet
from teams import WAYS, answers, answers_in_every_way, left_alone, losses

from triax.common.errors import UserError
from triax.data.read.shards import ShardWriter
from triax.inference.load import find_model
from triax.inference.team import Team, team_config

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONFIGS = {
    "tied": transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True
    ),
    "window": transformers.MistralConfig(**SIZES, num_key_value_heads=4, sliding_window=6),
    "gpt2": transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.5,
        bos_token_id=None, eos_token_id=None,
    ),
    "experts": transformers.MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    made = []
    for name, config in CONFIGS.items():
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        made.append(str(folder))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    prefix = tmp_path_factory.mktemp("data") / "text"
    chance = np.random.default_rng(2)
    with ShardWriter(prefix, np.dtype("<u2")) as writer:
        for length in range(3, 20):
            writer.add_document(chance.integers(1, 64, length))
    return str(prefix)


def test_what_they_write_and_find_is_what_one_does(folders: list[str], data: str) -> None:
    """Tokens and losses; odd numbers of prompts and sequences, so that shares are unequal."""
    alone = [answers(folder, Team.alone()) for folder in folders]
    lost = losses(folders, data, Team.alone())
    for in_ways in run_fleet(2, answers_in_every_way, folders, data):
        for way, (found, losses_found) in zip(WAYS, in_ways, strict=True):
            assert losses_found == pytest.approx(lost, abs=1e-5), way
            for (texts, scores, held), (expected, likely, whole) in zip(found, alone, strict=True):
                assert texts == expected, way
                assert scores == pytest.approx(likely, abs=1e-4), way
                assert held < 0.6 * whole or not way, "each process holds about half"
    assert len({str(texts) for texts, _, _ in alone}) == len(folders)


def test_a_model_that_cannot_be_divided_is_told(folders: list[str]) -> None:
    team = Team(torch.device("cpu"), team_config(3, shards=False))
    with pytest.raises(UserError, match="num_heads, 4, is not a multiple of --tensor 3"):
        find_model(folders[0]).load(team=team)


def test_a_process_that_is_left_alone_knows() -> None:
    """It ends with a sentence instead of a traceback, at once."""
    assert run_fleet(2, left_alone, may_fail=True, timeout=60) == [True, None]
