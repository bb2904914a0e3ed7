"""The deepspeed engine against a plain loop on one process, and its checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
from parity import TOLERANCE, label, measure

pytest.importorskip("deepspeed", reason='the extra is not installed: pip install "triax[deepspeed]"')
pytest.importorskip("megatron.core")

ZERO = [
    (1, {"zero_stage": 1}),
    (4, {"zero_stage": 1}),
    (4, {"zero_stage": 2}),
    (4, {"zero_stage": 3}),
    (2, {"zero_stage": 3, "activation_checkpointing": "full"}),
    (2, {"zero_stage": 1, "tensor": 2}),
    (4, {"zero_stage": 1, "tensor": 2, "sequence_parallel": False}),
    (4, {"zero_stage": 2, "tensor": 2}),
    (4, {"zero_stage": 3, "tensor": 2}),
]


def deepspeed(parallel: dict[str, Any]) -> dict[str, Any]:
    return {"engine": "deepspeed"} | parallel


@pytest.mark.parametrize(("num_processes", "parallel"), ZERO, ids=label)
def test_zero_and_tensor_parallel(num_processes: int, parallel: dict[str, Any]) -> None:
    size = 1 if parallel["zero_stage"] == 1 else 2
    tied = parallel["zero_stage"] == 3 and "tensor" in parallel
    found = measure(num_processes, deepspeed(parallel), tied=tied, micro_batch_size=size)
    assert found.worst <= TOLERANCE, found
