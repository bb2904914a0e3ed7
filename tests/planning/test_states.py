"""Bytes of weights, main params, gradients and moments, against reckonings by hand."""

from __future__ import annotations

from typing import Any

import pytest

from triax.models.counts import num_parameters
from triax.models.description import Parameter, describe
from triax.models.families import model_config
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.planning.memory import memory_of_place, memory_of_rank
from triax.planning.setup import Setup
from triax.training.config import BatchConfig, OptimizerConfig

TINY = {"num_layers": 4, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 96}


def make_setup(world_size: int, compute: str = "bf16", **options: Any) -> Setup:
    optimizer = options.pop("optimizer", {})
    model = options.pop("model", {**TINY, "ffn_hidden_size": 80})
    return Setup(
        model_config(**model),
        ParallelConfig(**options),
        PrecisionConfig.model_validate({"compute": compute}),
        BatchConfig(global_batch_size=16),
        OptimizerConfig(**optimizer),
        seq_len=32,
        world_size=world_size,
    )


def test_one_process_holds_16_bytes_a_weight_and_2_more_that_products_read() -> None:
    """Rajbhandari et al. 2020: 2 + 4 + 4 + 8."""
    setup = make_setup(1)
    memory, count = memory_of_place(setup, 0), num_parameters(setup.model)
    assert memory.weights == 2 * count
    assert memory.main_params == memory.gradients == 4 * count
    assert memory.moments == 8 * count
    assert memory.gathered_weights == 0


def test_adapters_leave_two_bytes_a_weight_and_18_a_factor() -> None:
    """The model is held in bf16 alone; gradients, main params and moments are the factors'."""
    setup = make_setup(1, model={**TINY, "ffn_hidden_size": 80, "lora": {"rank": 4, "alpha": 8}})
    memory, table = memory_of_place(setup, 0), describe(setup.model)
    factors = sum(row.num_elements for row in table.trained.values())
    assert memory.weights == 2 * num_parameters(setup.model)
    assert memory.main_params == memory.gradients == 4 * factors
    assert memory.moments == 8 * factors


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_frozen_weights_are_divided_too(zero_stage: int) -> None:
    model = {**TINY, "ffn_hidden_size": 80, "lora": {"rank": 4, "alpha": 8}}
    setup = make_setup(6, model=model, zero_stage=zero_stage)
    of_ranks, table = [memory_of_rank(setup, rank) for rank in range(6)], describe(setup.model)
    factors = sum(row.num_elements for row in table.trained.values())
    assert sum(each.main_params for each in of_ranks) == 4 * factors
    frozen = num_parameters(setup.model) - factors
    assert sum(each.weights for each in of_ranks) == 2 * frozen


def test_bf16_moments_and_gradients_take_half() -> None:
    memory = memory_of_place(make_setup(1, optimizer={"state_dtype": "bf16"}), 0)
    assert memory.moments == memory.main_params


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_the_shards_of_all_ranks_are_the_model(zero_stage: int) -> None:
    setup = make_setup(6, zero_stage=zero_stage)  # 6 divides neither rows nor widths
    of_ranks = [memory_of_rank(setup, rank) for rank in range(6)]
    assert sum(each.main_params for each in of_ranks) == 4 * num_parameters(setup.model)
    assert max(of_ranks, key=lambda each: each.main_params) == of_ranks[0]


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("expert", [1, 2, 4])
def test_experts_are_held_once_however_they_are_divided(zero_stage: int, expert: int) -> None:
    """32 columns over 2 or 4 processes, and 8 experts over the others."""
    experts = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 16, "bias_rate": 0.01}
    model = {**TINY, "ffn_hidden_size": 80, "experts": experts}
    setup = make_setup(8, model=model, zero_stage=zero_stage, expert=expert)
    total = sum(memory_of_rank(setup, rank).main_params for rank in range(8))
    assert total == 4 * num_parameters(setup.model)
    gathered = memory_of_rank(setup, 0).gathered_weights
    alone = memory_of_rank(make_setup(8, model=model, zero_stage=zero_stage), 0).gathered_weights
    of_experts = 3 * 8 * 16 * 32 * (4 if zero_stage < 3 else 2)  # layers, or those at once
    assert alone - gathered == 2 * (of_experts - of_experts // expert)


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_processes_that_divide_a_sequence_divide_the_weights(zero_stage: int) -> None:
    setup = make_setup(4, zero_stage=zero_stage, context=2)
    total = sum(memory_of_rank(setup, rank).main_params for rank in range(4))
    copies = 4 if zero_stage == 0 else 1
    assert total == copies * 4 * num_parameters(setup.model)
    whole = memory_of_rank(make_setup(2, zero_stage=zero_stage), 0)
    assert 2 * memory_of_rank(setup, 0).activations == whole.activations


def test_a_pipeline_and_split_layers_hold_each_weight_once_and_norms_on_every_rank() -> None:
    setup = make_setup(8, tensor=2, pipeline=4, zero_stage=1)
    total = sum(memory_of_rank(setup, rank).main_params for rank in range(8))
    norms = sum(p.num_elements for p in _whole(setup))
    assert total == 4 * (num_parameters(setup.model) + norms)


def _whole(setup: Setup) -> list[Parameter]:
    return [p for p in describe(setup.model).table if p.split_dimension is None]


def test_a_tied_head_of_another_stage_is_a_weight_without_moments() -> None:
    tied = {**TINY, "ffn_hidden_size": 80, "tie_embeddings": True}
    setup = make_setup(2, model=tied, pipeline=2)
    first, last = memory_of_place(setup, 0), memory_of_place(setup, 1)
    assert first.main_params + last.main_params == 4 * num_parameters(setup.model)
    assert last.weights - last.main_params // 2 == 2 * 96 * 32
