"""Every ZeRO stage on 1, 2 and 4 processes against a plain loop on one."""

from __future__ import annotations

import functools

import pytest
import torch
from fleet import run_fleet
from worlds import SMALL, Case, Run, engine_run, plain_run

TOLERANCE = 1e-5


@functools.cache
def reference(tied: bool) -> Run:
    [run] = run_fleet(1, plain_run, Case(model=SMALL | {"tie_embeddings": tied}))
    return run


def assert_same_run(run: Run, expected: Run, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(run.losses, expected.losses, rtol=tolerance, atol=0)
    torch.testing.assert_close(run.grad_norms, expected.grad_norms, rtol=tolerance, atol=0)
    for found, wanted in (
        (run.gradients, expected.gradients),
        (run.parameters, expected.parameters),
    ):
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(
                found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=name
            )


def test_the_reference_is_demanding() -> None:
    norms, clip_norm = reference(False).grad_norms, Case().clip_norm
    assert clip_norm is not None and min(norms) < clip_norm < max(norms), norms
    assert min(reference(False).losses) < reference(False).losses[0] - 0.1


LAYOUTS = [
    (1, 1, {"zero_stage": 0}),
    (1, 4, {"zero_stage": 3}),
    *((2, size, {"zero_stage": stage}) for stage in range(4) for size in (1, 4)),
    *((4, size, {"zero_stage": stage}) for stage in range(4) for size in (1, 2)),
    *((4, 1, {"zero_stage": stage, "replicate": 2}) for stage in (1, 2, 3)),
    (2, 1, {"zero_stage": 3, "activation_checkpointing": "full"}),
]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("num_processes", "micro_batch_size", "parallel"),
    LAYOUTS,
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value.values())),
)
def test_same_losses_gradients_and_weights(
    num_processes: int, micro_batch_size: int, parallel: dict[str, object], tied: bool
) -> None:
    case = Case(
        model=SMALL | {"tie_embeddings": tied}, parallel=parallel, micro_batch_size=micro_batch_size
    )
    for run in run_fleet(num_processes, engine_run, case):
        assert_same_run(run, reference(tied))
