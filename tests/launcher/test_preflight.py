"""Which machines preflight refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from triax.launcher.cluster.preflight import Machine, _time_product, find_bad_machines


def machines(**odd: Any) -> list[Machine]:
    """Four good ones, of which rank 2 differs."""
    good = [Machine(rank, f"node{rank}", "H200", 140 << 30, 0.0, 1e-3, None) for rank in range(4)]
    return [replace(machine, **odd) if machine.rank == 2 else machine for machine in good]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"device": "A100"}, "its device is A100, elsewhere H200"),
        ({"memory_bytes": 100 << 30}, "100.0 GiB of its device are free, elsewhere 140.0"),
        ({"matmul_seconds": 3e-3}, "a product takes 3.00 ms, elsewhere 1.00"),
        ({"problem": "a product of small integers is wrong"}, "is wrong"),
    ],
)
def test_a_bad_machine_is_named(odd: dict[str, Any], words: str) -> None:
    (problem,) = find_bad_machines(machines(**odd), is_shared=False)
    assert problem.startswith("rank 2 on node2: ") and words in problem


def test_good_machines_pass() -> None:
    assert find_bad_machines(machines(), is_shared=False) == []
    assert find_bad_machines(machines(matmul_seconds=1.0), is_shared=True) == []


def test_this_machine_computes_exactly() -> None:
    seconds, problem = _time_product(torch.device("cpu"))
    assert problem is None and seconds > 0


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = exact(left, right)
        if product.dtype == torch.float32:
            product[3, 5] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    assert _time_product(torch.device("cpu"))[1] is not None
