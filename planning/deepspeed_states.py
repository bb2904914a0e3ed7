"""Bytes of weights, main params, gradients and moments under DeepSpeed. Imports no torch.

Stages 1 and 2 keep each group of parameters in flat buffers, padded such that all ranks have equal
parts that begin at 4 bytes (twice the number of ranks, in elements); stage 3 divides and pads every
parameter for itself, and leaves small ones whole. As deepspeed 0.19 does it
(`runtime/bf16_optimizer.py`, `runtime/zero/stage_1_and_2.py`, `stage3.py`,
`partition_parameters.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triax.models.description import Parameter
from triax.planning.elements import Spread, elements_of
from triax.planning.setup import Setup

_ALIGNMENT = 2
"""DeepSpeed's `nccl_start_alignment_factor`."""
SMALL = 100_000
"""`stage3_param_persistence_threshold`: parameters of at most so many elements stay gathered."""
BUCKET = 500_000_000
"""Elements of `reduce_bucket_size`: gradients are put together up to so many."""
FP32 = 4


@dataclass(frozen=True)
class FlatStates:
    """Bytes of a process's buffers; see `states.States`.

    Attributes:
        weights, main_params, gradients, moments: on the device.
        host: of those that are offloaded: in the machine's memory, or on a drive.
    """

    weights: int
    main_params: int
    gradients: int
    moments: int
    host: int = 0


def flat_states(
    setup: Setup, updated: Sequence[Parameter], followers: Sequence[Parameter]
) -> FlatStates:
    """Of one process.

    Args:
        updated: the parameters of its stage that the optimizer updates.
        followers: heads that are tied to another stage's embedding.
    """
    split = Spread(setup.parallel.tensor)
    follower = sum(elements_of(each, split).whole for each in followers)
    kept = setup.compute_bytes * follower
    if setup.parallel.zero_stage == 3:
        return _each_parameter(setup, updated, kept)
    padded = sum(padded_elements(setup, group) for group in groups_of(setup, updated))
    part = padded // setup.weight_shards
    keeps_all = is_bf16_optimizer(setup)
    return _placed(
        setup,
        weights=setup.compute_bytes * padded + kept,
        main_params=FP32 * part,
        gradients=FP32 * (padded if keeps_all else part),
        moments=2 * FP32 * part,
    )


def padded_elements(setup: Setup, group: Sequence[Parameter]) -> int:
    """Of the flat buffer of parameters that are updated alike."""
    unit, split = _ALIGNMENT * setup.weight_shards, Spread(setup.parallel.tensor)
    count = sum(elements_of(each, split).whole for each in group)
    return -(-count // unit) * unit


def is_bf16_optimizer(setup: Setup) -> bool:
    """Whether DeepSpeed takes its bf16 optimizer, which holds fp32 gradients of all weights."""
    parallel = setup.parallel
    return (
        setup.precision.compute == "bf16"
        and parallel.zero_stage == 1
        and parallel.offload == "none"
    )


def groups_of(setup: Setup, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """The parameters that are updated alike; see `training.step.optimizer.parameter_groups`."""
    groups: dict[tuple[bool, float], list[Parameter]] = {}
    for parameter in parameters:
        scale = setup.optimizer.lr_scales.get(parameter.role, 1.0)
        groups.setdefault((parameter.decays, scale), []).append(parameter)
    return list(groups.values())


def _each_parameter(setup: Setup, updated: Sequence[Parameter], kept: int) -> FlatStates:
    ranks, split = setup.weight_shards, Spread(setup.parallel.tensor)
    sizes = [elements_of(each, split).whole for each in updated]
    part = sum(-(-size // ranks) for size in sizes)
    whole = sum(size for size in sizes if size <= SMALL)
    return _placed(
        setup,
        weights=setup.compute_bytes * (part + whole) + kept,
        main_params=FP32 * part,
        gradients=FP32 * part,
        moments=2 * FP32 * part,
    )


def _placed(
    setup: Setup, *, weights: int, main_params: int, gradients: int, moments: int
) -> FlatStates:
    """With offload the optimizer's state is in the machine's memory, and at stage 3 weights too."""
    if setup.parallel.offload == "none":
        return FlatStates(weights, main_params, gradients, moments)
    if setup.parallel.zero_stage < 3:
        host = main_params + gradients + moments
        return FlatStates(weights, 0, 0, 0, host)
    return FlatStates(0, 0, 0, 0, weights + main_params + gradients + moments)
