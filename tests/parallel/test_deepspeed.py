"""The deepspeed engine against a plain loop on one process and against the native engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from apex_stand_in import write_apex
from deepspeed_ranks import evaluation, refused_update, run_with_apex, steps_of
from fleet import run_fleet
from parity import TOLERANCE, label, make_model, measure, reference
from worlds import Case, difference, merged

ZERO = [
    (1, {"zero_stage": 1}),
    (4, {"zero_stage": 2}),
    (4, {"zero_stage": 3}),
    (2, {"zero_stage": 2, "offload": "cpu"}),
    (2, {"zero_stage": 3, "offload": "cpu", "activation_checkpointing": "full"}),
    (2, {"zero_stage": 1, "tensor": 2, "activation_checkpointing": "selective"}),
    (4, {"zero_stage": 1, "tensor": 2, "sequence_parallel": False}),
    (4, {"zero_stage": 3, "tensor": 2}),
]
PIPELINE = [
    (2, {"pipeline": 2}),
    (4, {"pipeline": 2, "pipeline_split": (1, 3), "activation_checkpointing": "full"}),
    (4, {"pipeline": 2, "tensor": 2}),
]


def deepspeed(parallel: dict[str, Any]) -> dict[str, Any]:
    return {"engine": "deepspeed"} | parallel


@pytest.mark.parametrize(("num_processes", "parallel"), ZERO, ids=label)
def test_zero_with_tensor_parallel(num_processes: int, parallel: dict[str, Any]) -> None:
    size = 1 if parallel["zero_stage"] == 1 else 2
    tied = parallel["zero_stage"] == 3
    found = measure(num_processes, deepspeed(parallel), tied=tied, micro_batch_size=size)
    assert found.worst <= TOLERANCE, found


@pytest.mark.parametrize(("num_processes", "parallel"), PIPELINE, ids=label)
def test_pipeline(num_processes: int, parallel: dict[str, Any]) -> None:
    tied = num_processes == 4
    size = 2 if "tensor" in parallel else 1
    found = measure(num_processes, deepspeed(parallel), tied=tied, micro_batch_size=size)
    assert found.worst <= TOLERANCE, found


@pytest.mark.parametrize("parallel", [{"zero_stage": 3, "tensor": 2}, {"pipeline": 2}], ids=label)
def test_apex_in_the_places_of_norms_and_optimizer(
    parallel: dict[str, Any], tmp_path: Path
) -> None:
    """With a stand-in that has apex's interface: it shows that every norm is computed by it, that
    the weights' gradients are still summed where they have to be, and that names stay."""
    write_apex(tmp_path, "nvidia")
    optimizer = Case().optimizer | {"implementation": "apex"}
    case = Case(model=make_model(tied=False), parallel=deepspeed(parallel), optimizer=optimizer)
    found = run_fleet(2, run_with_apex, case, str(tmp_path))
    assert difference(merged([run for run, _ in found]), reference(tied=False)).worst <= TOLERANCE
    num_micro_batches = case.num_steps * case.global_batch_size
    norms_held = [4 * 4 + 1] * 2 if "tensor" in parallel else [2 * 4, 2 * 4 + 1]
    assert [count for _, count in found] == [n * num_micro_batches for n in norms_held]


@pytest.mark.parametrize(
    "parallel",
    [{"zero_stage": 2}, {"zero_stage": 3}, {"pipeline": 2}],
    ids=label,
)
def test_bf16_rounds_as_the_native_engine_does(parallel: dict[str, Any]) -> None:
    """The first step to the last digits; later ones as far as sums in other orders allow."""
    native = run_fleet(2, steps_of, Case(parallel=parallel, precision={"compute": "bf16"}))
    found = run_fleet(
        2, steps_of, Case(parallel=deepspeed(parallel), precision={"compute": "bf16"})
    )
    in_fp32 = run_fleet(2, steps_of, Case(parallel=deepspeed(parallel)))
    torch.testing.assert_close(found[0][0], native[0][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0], native[0], rtol=5e-3, atol=0)
    assert (found[0] - in_fp32[0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("parallel", "compute"),
    [
        ({"zero_stage": 1}, "fp32"),
        ({"zero_stage": 1}, "bf16"),
        ({"zero_stage": 2, "offload": "cpu"}, "fp32"),
        ({"zero_stage": 3}, "bf16"),
        ({"pipeline": 2}, "fp32"),
        ({"pipeline": 2}, "bf16"),
    ],
    ids=label,
)
def test_a_refused_update_changes_nothing(parallel: dict[str, Any], compute: str) -> None:
    """Neither weights nor moments nor step counts, with finite gradients and without; and the
    gradients are dropped: the next update is as if the refused ones had never been."""
    case = Case(parallel=deepspeed(parallel), precision={"compute": compute})
    for report in run_fleet(2, refused_update, case):
        assert report == []


@pytest.mark.parametrize(
    "parallel", [{"zero_stage": 3, "tensor": 2}, {"pipeline": 2, "tensor": 2}], ids=label
)
def test_evaluation(parallel: dict[str, Any]) -> None:
    """The same sums as the native engine, before and after a step, and no harm to training."""
    native = run_fleet(4, evaluation, Case(parallel={"zero_stage": 1}))
    found = run_fleet(4, evaluation, Case(parallel=deepspeed(parallel)))
    assert len({tuple(sums) for sums in found}) == 1
    assert found[0] == pytest.approx(native[0], rel=1e-6)
