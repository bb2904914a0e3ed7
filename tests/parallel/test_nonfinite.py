"""Values that are not finite, among tensors of any kind."""

from __future__ import annotations

import pytest
import torch

from triax.parallel.flat_shards import Block, FlatShard
from triax.parallel.nonfinite import first_non_finite


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
