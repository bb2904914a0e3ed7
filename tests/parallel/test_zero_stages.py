"""Each ZeRO stage is itself: its collectives and what lives between micro-batches.

Parity alone can't tell the stages apart.
"""

from __future__ import annotations

import functools

import pytest
from fleet import run_fleet
from worlds import SMALL, Case, StageProfile, stage_profile

NUM_MICRO_BATCHES = 4
WIDER = SMALL | {"hidden_size": 64, "ffn_hidden_size": 192}
STEP_ALL_REDUCES = 2
"""The number of targets, and the step's sums."""


@functools.cache
def profile(zero_stage: int, replicate: int = 1) -> StageProfile:
    parallel = {"zero_stage": zero_stage, "replicate": replicate}
    case = Case(model=WIDER, parallel=parallel, global_batch_size=4 * NUM_MICRO_BATCHES)
    found: StageProfile = run_fleet(4, stage_profile, case)[0]
    return found


@pytest.mark.parametrize(
    ("parallel", "gathers", "reduce_scatters", "all_reduces"),
    [
        ({"zero_stage": 0}, 0, 0, 1),
        ({"zero_stage": 1}, 1, 1, 0),
        ({"zero_stage": 2}, 1, 4, 0),
        # Every micro-batch gathers each block forward and backward; the rest once.
        ({"zero_stage": 3}, None, 4, 0),
        ({"zero_stage": 1, "replicate": 2}, 1, 1, 1),
        ({"zero_stage": 2, "replicate": 2}, 1, 4, 1),
        ({"zero_stage": 3, "replicate": 2}, None, 4, 1),
    ],
)
def test_collectives_of_a_step_with_four_micro_batches(
    parallel: dict[str, int], gathers: int | None, reduce_scatters: int, all_reduces: int
) -> None:
    found = profile(**parallel)
    groups = found.num_groups
    if gathers is None:
        expected_gathers = NUM_MICRO_BATCHES * (2 * (groups - 1) + 1)
    else:
        expected_gathers = gathers * groups
    assert found.collectives.get("allgather_base", 0) == expected_gathers
    assert found.collectives.get("reduce_scatter_base", 0) == reduce_scatters * groups
    assert found.collectives["allreduce"] == all_reduces * groups + STEP_ALL_REDUCES


@pytest.mark.parametrize(
    ("parallel", "between", "after"),
    [
        # In units of all parameters in fp32: weights + gathered copy + gradients + moments.
        ({"zero_stage": 0}, 1 + 1 + 1 + 2, 1 + 2),
        ({"zero_stage": 1}, 1 / 4 + 1 + 1 + 2 / 4, 3 / 4),
        ({"zero_stage": 2}, 1 / 4 + 1 + 1 / 4 + 2 / 4, 3 / 4),
        ({"zero_stage": 3}, 1 / 4 + 0 + 1 / 4 + 2 / 4, 3 / 4),
        ({"zero_stage": 1, "replicate": 2}, 1 / 2 + 1 + 1 + 2 / 2, 3 / 2),
        ({"zero_stage": 3, "replicate": 2}, 1 / 2 + 0 + 1 / 2 + 2 / 2, 3 / 2),
    ],
)
def test_bytes_that_live_between_micro_batches_and_after_the_update(
    parallel: dict[str, int], between: float, after: float
) -> None:
    found = profile(**parallel)
    slack = 0.1  # a reduction's buffer is kept until the next one
    assert found.bytes_after_update / found.num_parameter_bytes == pytest.approx(after, abs=0.01)
    assert 0 <= found.bytes_between_micro_batches / found.num_parameter_bytes - between < slack
