"""How layers are divided over stages, and which micro-batches a schedule takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.families import model_config
from triax.parallel.config import ParallelConfig
from triax.parallel.stages import (
    SCHEDULES,
    num_stages,
    rank_of_stage,
    schedule_problem,
    split_layers,
    stages_of_rank,
)


def model(num_layers: int, vocab_size: int = 64) -> ModelConfig:
    return model_config(
        num_layers=num_layers, hidden_size=32, num_heads=4, ffn_hidden_size=64,
        vocab_size=vocab_size,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    layers=st.integers(1, 40), ranks=st.integers(2, 8), schedule=st.sampled_from(list(SCHEDULES)),
    vocab_size=st.sampled_from([8, 1000, 20000]),
)  # fmt: skip
def test_every_layer_is_in_one_stage_and_no_split_is_cheaper_by_moving_one_layer(
    layers: int, ranks: int, schedule: str, vocab_size: int
) -> None:
    config = ParallelConfig.model_validate({"pipeline": ranks, "pipeline_schedule": schedule})
    shape = model(layers, vocab_size)
    if layers < num_stages(config):
        with pytest.raises(UserError, match="fewer than the pipeline's"):
            split_layers(shape, config, 128)
        return
    split = split_layers(shape, config, 128)
    assert [layer for part in split for layer in part] == list(range(layers))
    assert all(len(part) > 0 for part in split)

    def costliest(sizes: list[int]) -> float:
        model = describe(shape)
        block, head = model.layer_flops_per_token(128)[0], model.head_flops_per_token()
        costs: list[float] = [size * block for size in sizes]
        costs[0] += head / 6
        costs[-1] += head
        return max(costs)

    sizes = [len(part) for part in split]
    for giver in range(len(sizes)):
        for taker in range(len(sizes)):
            moved = sizes.copy()
            moved[giver] -= 1
            moved[taker] += 1
            if min(moved) > 0:
                assert costliest(sizes) <= costliest(moved)


def test_a_large_head_takes_layers_from_the_last_stage() -> None:
    config = ParallelConfig(pipeline=4)
    assert [len(part) for part in split_layers(model(16, 4), config, 128)] == [4, 4, 4, 4]
    sizes = [len(part) for part in split_layers(model(16, 1500), config, 128)]
    assert sizes[-1] < sizes[1] == max(sizes)


@pytest.mark.parametrize("split", [(3, 4), (3, 6), (1, 2, 5)])
def test_a_split_that_does_not_fit(split: tuple[int, ...]) -> None:
    config = ParallelConfig(pipeline=2, pipeline_split=split)
    with pytest.raises(UserError, match="needs 2 numbers"):
        split_layers(model(8), config, 128)


def test_stages_of_ranks() -> None:
    loop = ParallelConfig(pipeline=3, pipeline_schedule="interleaved-1f1b", stages_per_rank=2)
    assert [stages_of_rank(rank, loop) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]
    v = ParallelConfig(pipeline=3, pipeline_schedule="zbv-zero-bubble")
    assert [stages_of_rank(rank, v) for rank in range(3)] == [[0, 5], [1, 4], [2, 3]]
    assert rank_of_stage(5, v) == 0


@pytest.mark.parametrize(
    ("schedule", "num_micro_batches", "fits"),
    [
        ("gpipe", 1, True), ("1f1b", 3, False), ("1f1b", 4, True), ("1f1b", 5, True),
        ("interleaved-1f1b", 3, True), ("interleaved-1f1b", 8, True),
        ("interleaved-1f1b", 9, False), ("interleaved-zero-bubble", 9, False),
        ("zbv-zero-bubble", 1, True), ("dualpipe-v", 7, False), ("dualpipe-v", 8, True),
    ],
)  # fmt: skip
def test_micro_batches_of_a_schedule(schedule: str, num_micro_batches: int, fits: bool) -> None:
    config = ParallelConfig.model_validate({"pipeline": 4, "pipeline_schedule": schedule})
    assert (schedule_problem(config, num_micro_batches) is None) == fits
