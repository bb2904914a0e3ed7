"""What DeepSpeed sends along the shard axis in a step. Imports no torch.

Gradients go in fp32 through buckets, all-reduced by stages 1 and 2 (each process keeps its part)
and scattered by stage 3; stages 1 and 2 gather each group of parameters once, after the update. As
deepspeed 0.19 does it (`runtime/engine.py`, `runtime/zero/stage_1_and_2.py`, `stage3.py`,
`partitioned_param_coordinator.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from triax.planning.deepspeed_states import (
    BUCKET,
    FP32,
    SMALL,
    groups_of,
    is_bf16_optimizer,
    padded_elements,
)
from triax.planning.elements import Spread, elements_of
from triax.planning.message import Message
from triax.planning.setup import Setup
from triax.planning.stage import StagePart


def deepspeed_zero_messages(setup: Setup, part: StagePart) -> Iterator[Message]:
    """Gathers of weights and sums of gradients of one process."""
    shards, stage = setup.weight_shards, setup.parallel.zero_stage
    updated, _ = part.parameters(setup.model)
    split = Spread(setup.parallel.tensor)
    sizes = [elements_of(each, split).whole for each in updated]
    if stage == 3:
        yield _gathers_of_stage_3(setup, sizes)
        sizes = [-(-size // shards) * shards for size in sizes]
    else:
        groups = [padded_elements(setup, group) for group in groups_of(setup, updated)]
        weights = setup.compute_bytes * sum(groups)
        yield Message("shard", "all-gather", "weights", len(groups), weights, shards)
    reductions = setup.num_micro_batches if stage >= 2 else 1
    num_buckets = _num_buckets(reversed(sizes), may_exceed=is_bf16_optimizer(setup))
    yield Message(
        "shard",
        "reduce-scatter" if stage == 3 else "all-reduce",
        "gradients",
        reductions * num_buckets,
        reductions * FP32 * sum(sizes),
        shards,
    )


def _gathers_of_stage_3(setup: Setup, sizes: list[int]) -> Message:
    """Large parameters before the forward and the backward pass of each micro-batch, small ones,
    which stay, once a step. How many of them DeepSpeed takes together, and whether it keeps some
    from one pass to the next, depends on what it has seen before: so this is the most."""
    passes = 2 * setup.num_micro_batches
    large = [size for size in sizes if size > SMALL]
    small = [size for size in sizes if size <= SMALL]
    num_bytes = setup.compute_bytes * (passes * sum(large) + sum(small))
    num = passes * len(large) + len(small)
    return Message("shard", "all-gather", "weights", num, num_bytes, setup.weight_shards)


def _num_buckets(sizes: Iterable[int], *, may_exceed: bool) -> int:
    """How many messages gradients of so many elements are put together into, in this order.

    Args:
        may_exceed: a bucket is sent when it has become too large; otherwise before it would.
    """
    count, elements = 0, 0
    for size in sizes:
        if elements and elements + size > BUCKET and not may_exceed:
            count, elements = count + 1, 0
        elements += size
        if may_exceed and elements > BUCKET:
            count, elements = count + 1, 0
    return count + (elements > 0)
