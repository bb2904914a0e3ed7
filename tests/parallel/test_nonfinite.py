"""Values that are not finite, among tensors of any kind."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from triax.models.batch import Batch
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.parallel.flat_shards import Block, FlatShard
from triax.parallel.nonfinite import first_non_finite
from triax.parallel.results import step_sums


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["matrix", "half", "scalar", "flat shard"])
def test_the_first_broken_tensor_is_named(name: str, value: float) -> None:
    elements = torch.full((10,), 1e38)
    tensors = {
        "matrix": torch.full((40, 50), -3e38),
        "half": torch.ones(7, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": torch.zeros(()),
        "flat shard": FlatShard(elements, 3, Block((0, 0), (4, 5), (4, 5))),
        "last": torch.zeros(2),
    }
    assert first_non_finite(tensors) is None
    tensors["last"][0] = torch.nan
    broken = elements if name == "flat shard" else tensors[name].view(-1)
    broken[-1] = value
    assert first_non_finite(tensors) == name


def test_nothing_is_finite() -> None:
    assert first_non_finite({}) is None


@pytest.mark.parametrize("broken", [None, "objective", "cross_entropy", "weight"])
def test_a_rank_is_named_for_any_term_of_its_objective(
    monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    """Also where the loss itself is finite: a router's term may overflow alone."""
    monkeypatch.setattr(dist, "all_reduce", lambda _: None)
    values = {name: torch.ones((), dtype=torch.float64) for name in ("cross_entropy", "objective")}
    values["weight"] = torch.ones(())
    if broken is not None:
        values[broken].fill_(torch.inf)
    weight = values.pop("weight")
    told = step_sums(values, torch.ones((), dtype=torch.float64), weight, tensor_size=1)
    assert told.own_finite == float(broken is None) and told.extra == {}


def test_a_routers_term_is_one_of_the_objective() -> None:
    """Of a loss of 1e50 in fp32, on a stage with a head and on one without."""
    experts = {"num_experts": 2, "top_k": 1, "ffn_hidden_size": 8, "batch_loss": 0.0}
    config = model_config(
        num_layers=2, hidden_size=8, num_heads=2, ffn_hidden_size=8, vocab_size=9, experts=experts
    )
    rows = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))
    for layers in (range(2), range(1)):
        model = Transformer(config)
        initialise_model(model, model.description, seed=0)
        model.keep(layers)
        assert model(rows.tokens_BT, rows, torch.ones(())).sums["objective"].isfinite()
        torch.nn.init.constant_(model.get_parameter("blocks.0.mlp.router.weight"), 1e25)
        sums = model(rows.tokens_BT, rows, torch.ones(())).sums
        assert not sums["objective"].isfinite()
        assert "cross_entropy" not in sums or sums["cross_entropy"].isfinite()
