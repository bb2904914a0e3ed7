"""Experts that begin as copies of a dense model's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from expert_worlds import EXPERTS, routers_of, upcycled_weights
from fleet import run_fleet
from worlds import SEED, SMALL, Case

from triax.checkpoint.model import load_model
from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer

DENSE = SMALL | {"ffn_hidden_size": 32, "tie_embeddings": True}


def dense_checkpoint(folder: Path) -> Transformer:
    model = Transformer(model_config(**DENSE))
    initialise_model(model, model.description, seed=99)
    shards = {f"model.{n}": whole(weight.detach()) for n, weight in model.named_parameters()}
    write_checkpoint(folder, shards, {"config": {"model": DENSE}}, step=0)
    return model


def upcycled(folder: Path, num: int, layout: dict[str, Any], noise: float) -> dict[str, Any]:
    """The whole weights that a model with experts begins with in a layout."""
    case = Case(model=DENSE | {"experts": EXPERTS}, parallel=layout)
    parts = run_fleet(num, upcycled_weights, case, str(folder), noise)
    return {name: tensor for part in parts for name, tensor in part.items()}


@torch.no_grad()
def test_the_model_computes_what_the_dense_one_did(tmp_path: Path) -> None:
    """Every expert is the dense layer, and a token's weights sum to 1: the choice is all the same.
    The first layer stays dense, as `first_dense_layers` says."""
    dense = dense_checkpoint(tmp_path / "dense")
    weights = upcycled(tmp_path / "dense", 1, {}, noise=0.0)
    model = Transformer(model_config(**DENSE, experts=EXPERTS))
    model.load_state_dict(weights, strict=False)
    tokens_BT = torch.randint(0, 96, (3, 16))
    torch.testing.assert_close(model.logits(tokens_BT), dense.logits(tokens_BT))
    choice = routers_of(model)[1](torch.randn(1, 50, 32), None)
    assert len(choice.experts_BTK.unique()) == 4, "the router begins as in a new model"


def test_noise_is_a_new_models_weights_and_every_layout_begins_alike(tmp_path: Path) -> None:
    dense_checkpoint(tmp_path / "dense")
    dense = dict(load_model(tmp_path / "dense", model_config(**DENSE)).named_parameters())
    fresh = Transformer(model_config(**DENSE, experts=EXPERTS))
    initialise_model(fresh, fresh.description, SEED)
    expected = {}
    for name, weight in (*fresh.named_parameters(), *fresh.named_buffers()):
        expected[name] = weight
        if ".experts." in name:
            expected[name] = weight * 0.5 + dense[name.replace(".experts.", ".") + ".weight"]
        elif name in dense:
            expected[name] = dense[name]
    for num, layout in (
        (1, {}),
        (2, {"zero_stage": 3}),
        (4, {"expert": 2, "tensor": 2, "pipeline": 1, "zero_stage": 2}),
        (4, {"tensor": 2, "pipeline": 2}),
    ):
        found = upcycled(tmp_path / "dense", num, layout, noise=0.5)
        for name in expected:
            assert torch.equal(found[name], expected[name]), (layout, name)
