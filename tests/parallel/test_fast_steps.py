"""Whole steps on the fast paths: parity with a plain loop in fp32, and nothing that waits."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
from fast_paths import BACKEND, EACH_DEVICE, ON_GPU, steady_steps
from fleet import run_fleet
from worlds import SMALL, Case, Run, difference, engine_run, plain_run

# Head size 16: FlexAttention takes no less. Sizes that fp8 takes.
SHAPE = SMALL | {"hidden_size": 64, "ffn_hidden_size": 64}
SEQ_LEN = 256
"""Two blocks of a mask."""
FP32_TOLERANCE = 1e-4
"""Of everything: other kernels, other orders of sums, ten updates."""
LOSS_TOLERANCE = {"bf16": 1e-2, "fp8": 2e-2}
"""Relative, over ten steps."""
BF16_STATES: dict[str, Any] = {"lr": 2e-3, "eps": 1e-5, "state_dtype": "bf16"}


@functools.cache
def reference() -> Run:
    [run] = run_fleet(1, plain_run, Case(model=SHAPE, seq_len=SEQ_LEN))
    return run


@ON_GPU
@pytest.mark.parametrize("compiled", [False, True])
def test_fp32_is_that_of_a_plain_loop_on_the_cpu(device: str, compiled: bool) -> None:
    parallel = {"compile": compiled}
    case = Case(model=SHAPE, seq_len=SEQ_LEN, device=device, parallel=parallel)
    [run] = run_fleet(1, engine_run, case, backend=BACKEND[device], timeout=300)
    found = difference(run, reference())
    assert found.worst < FP32_TOLERANCE, found


@ON_GPU
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "precision",
    [
        {"compute": "bf16"},
        {"compute": "fp8"},
        {"compute": "fp8", "fp8_recipe": "rowwise", "gradients": "bf16"},
    ],
    ids=lambda precision: "-".join(precision.values()),
)
def test_low_precision_is_near_fp32(
    device: str, precision: dict[str, str], checkpointing: str
) -> None:
    # Stage 3 is FSDP2's on one process too; below, main params keep the fp32 weights.
    zero_stage = 1 if checkpointing == "none" else 3
    parallel = {
        "compile": True, "activation_checkpointing": checkpointing, "zero_stage": zero_stage
    }  # fmt: skip
    case = Case(model=SHAPE, seq_len=SEQ_LEN, device=device, parallel=parallel, precision=precision)
    [run] = run_fleet(1, engine_run, case, backend=BACKEND[device], timeout=300)
    pairs = zip(run.losses, reference().losses, strict=True)
    furthest = max(abs(a - b) / b for a, b in pairs)
    assert 1e-6 < furthest < LOSS_TOLERANCE[precision["compute"]]


@EACH_DEVICE
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        ({"compute": "bf16"}, {"lr": 1e-3}),
        ({"compute": "bf16"}, {"lr": 1e-3, "implementation": "compiled"}),
        ({"compute": "fp8", "gradients": "bf16"}, BF16_STATES),
    ],
    ids=["bf16", "bf16-compiled", "fp8-bf16-states"],
)
def test_a_steady_step_waits_for_nothing(
    device: str, precision: dict[str, str], optimizer: dict[str, Any]
) -> None:
    case = Case(
        model=SHAPE, seq_len=SEQ_LEN, device=device, precision=precision, optimizer=optimizer,
        global_batch_size=4, micro_batch_size=2, parallel={"compile": device == "cuda"},
    )  # fmt: skip
    [losses] = run_fleet(1, steady_steps, case, backend=BACKEND[device], timeout=300)
    assert all(math.isfinite(loss) for loss in losses)
