"""What pipeline stages hold besides activations, and mistakes planted into one process's code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from measured import DEEP, case
from rehearsed import rehearse, setup_of
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from triax.planning.memory import EARLY_RECEIVES, memory_of_rank
from triax.planning.rehearsal.comparing import compare
from triax.planning.rehearsal.fake import fake_world
from triax.planning.rehearsal.memory import Part
from triax.planning.rehearsal.report import namer


@pytest.mark.parametrize("rank", [0, 1])
def test_more_micro_batches_hold_no_more_messages_at_once(rank: int) -> None:
    """torch's own stages keep a tensor for each micro-batch's input and gradient."""
    parallel = {"pipeline": 2, "zero_stage": 0}
    few, many = (case(parallel, model=DEEP, global_batch_size=count) for count in (4, 12))
    sizes = [rehearse(job, rank, 2).highest[Part.MESSAGES] for job in (few, many)]
    assert sizes[0] == sizes[1] > 0
    forecast = [memory_of_rank(setup_of(job, 2), rank).stage_messages for job in (few, many)]
    assert forecast[0] == forecast[1] >= sizes[0]


@pytest.mark.parametrize(
    ("schedule", "num_ranks", "per_rank", "count"),
    [
        (ScheduleInterleaved1F1B, 4, 2, 16),
        (ScheduleInterleaved1F1B, 8, 4, 32),
        (ScheduleInterleavedZeroBubble, 4, 2, 16),
        (ScheduleZBVZeroBubble, 4, 2, 16),
        (ScheduleDualPipeV, 8, 2, 32),
    ],
)
def test_schedules_wait_for_few_messages_at_once_while_they_hold_the_most(
    schedule: Any, num_ranks: int, per_rank: int, count: int
) -> None:
    """By torch's own order of passes and messages."""
    is_v = schedule in (ScheduleZBVZeroBubble, ScheduleDualPipeV)
    total = num_ranks * per_rank
    stages = [0, total - 1] if is_v else range(0, total, num_ranks)
    with fake_world(0, num_ranks):
        meta = torch.empty(1, 2, device="meta")
        parts = [
            PipelineStage(
                nn.Linear(2, 2), n, total, torch.device("cpu"), input_args=meta, output_args=meta
            )
            for n in stages
        ]
        orders = schedule(parts, count, loss_fn=lambda x, _: x).pipeline_order_with_comms
    for order in orders.values():
        actions = [sub for action in order for sub in (action.sub_actions or (action,))]
        assert _awaited_at_the_fullest(actions) <= 2 * EARLY_RECEIVES


def _awaited_at_the_fullest(actions: list[Any]) -> int:
    """Messages that have been asked for and not been used, at most, while the most passes wait for
    their backward pass."""
    held = most = at_most = 0
    awaited: set[tuple[str, int, int]] = set()
    for action in actions:
        kind = action.computation_type.name
        place = (action.stage_index, action.microbatch_index)
        if kind.startswith("RECV"):
            awaited.add((kind[-1], *place))
        if kind == "FORWARD":
            awaited.discard(("F", *place))
            held += 1
        if kind in ("FULL_BACKWARD", "BACKWARD_INPUT"):
            awaited.discard(("B", *place))
        if kind in ("FULL_BACKWARD", "BACKWARD_WEIGHT"):
            held -= 1
        if held > most:
            most, at_most = held, 0
        if held == most:
            at_most = max(at_most, len(awaited))
    return at_most


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"compute": "fp32"}, ("of bfloat16", "of float32")),
        ({"model": {"ffn_hidden_size": 64}}, ("bytes",)),
        ({"global_batch_size": 16}, ("reduce-scatter", "on rank 1")),
    ],
)
def test_a_process_that_computes_otherwise_is_found_and_named(
    planted: dict[str, Any], words: tuple[str, ...]
) -> None:
    parallel = {"zero_stage": 2}
    jobs = (case(parallel), case(parallel, **planted))
    recordings = [rehearse(job, rank, 2) for rank, job in enumerate(jobs)]
    layout = setup_of(jobs[0], 2).layout
    found = compare({each.rank: each.events for each in recordings}, namer(layout)).findings
    assert found[0].kind == "mismatch"
    assert found[0].ranks == (0, 1)
    assert "the shard group of rank 0" in found[0].text
    assert all(word in found[0].text for word in words), found[0].text
