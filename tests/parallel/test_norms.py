"""Sums of squares against fp64."""

from __future__ import annotations

import pytest
import torch

from triax.parallel.norms import squared_norms


@pytest.mark.parametrize("num_elements", [10_000_000, 50_000_000])
def test_a_large_norm_is_as_if_added_up_in_fp64(num_elements: int) -> None:
    values = torch.randn(num_elements, generator=torch.Generator().manual_seed(1)) * 1e-3
    expected = sum(part.double().square().sum() for part in values.split(1 << 22))
    found = squared_norms([values])[0]
    assert found.dtype == torch.float64
    assert float(found.sqrt()) == pytest.approx(float(expected) ** 0.5, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_give_the_norm_of_the_whole(dtype: torch.dtype) -> None:
    """Of any sizes, dimensions and strides, also none at all."""
    whole = torch.randn(3_000, 1_111, generator=torch.Generator().manual_seed(2)).to(dtype)
    parts = [whole[:7], whole[7:2000].T, whole[2000:, :1], whole[2000:, 1:], whole[:0]]
    expected = float(whole.double().square().sum().sqrt())
    for tensors in (parts, [whole]):
        assert float(squared_norms(tensors).sum().sqrt()) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1500, -1])
def test_a_value_that_is_not_finite_is_seen_anywhere(value: float, place: int) -> None:
    values = torch.zeros(5_000)
    values[place] = value
    assert not torch.isfinite(squared_norms([torch.ones(3), values])).all()
