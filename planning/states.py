"""Bytes of weights, main params, gradients and moments on one process, to the byte. No torch.

Follows `parallel/zero.py`, `parallel/main_params.py` and `training/step/adamw.py`. The reckoning is
that of Rajbhandari et al. 2020 (ZeRO), figure 1: with bf16 weights, and fp32 gradients, main params
and moments, 2 + 4 + 4 + 8 bytes a weight, of which ZeRO's stages divide more and more.
"""

from __future__ import annotations

from dataclasses import dataclass

from triax.planning.deepspeed_states import flat_states
from triax.planning.elements import StageElements
from triax.planning.setup import Setup
from triax.planning.stage import StagePart

FP32 = 4


@dataclass(frozen=True)
class States:
    """Bytes that a process holds from step to step, and its gradients before the update.

    Attributes:
        weights: what products read, where it is held beside what is updated: in the compute dtype
            on a single data-parallel process, in flat buffers under DeepSpeed, and a head that
            follows an embedding of another stage; and what is frozen beside adapters, of which
            there is nothing else.
        main_params: what the optimizer updates: fp32, ZeRO's share of it (`Engine.state()`'s
            `model.*`).
        gradients: of the main params, after the last backward pass and before the update.
        moments: of the optimizer (`exp_avg` and `exp_avg_sq`).
        host: of all this, what is offloaded: in the machine's memory or on a drive.
    """

    weights: int = 0
    main_params: int = 0
    gradients: int = 0
    moments: int = 0
    host: int = 0


def states_of(setup: Setup, part: StagePart) -> States:
    """Of a process's part of one pipeline stage, by either engine."""
    if setup.parallel.engine == "deepspeed":
        flat = flat_states(setup, *part.parameters(setup.model))
        return States(flat.weights, flat.main_params, flat.gradients, flat.moments, flat.host)
    stage, frozen = part.elements, part.frozen.all
    updated = stage.updated
    state_bytes = 2 if setup.optimizer.state_dtype == "bf16" else FP32
    if setup.shards:
        return States(
            weights=FP32 * stage.follower.shard + setup.compute_bytes * frozen.shard,
            main_params=FP32 * updated.shard,
            gradients=gradient_bytes(setup) * updated.shard,
            moments=2 * state_bytes * updated.shard,
        )
    copy_bytes = 0 if setup.precision.compute == "fp32" else setup.compute_bytes
    followers = (copy_bytes or FP32) * stage.follower.whole
    return States(
        weights=copy_bytes * updated.whole + followers + setup.compute_bytes * frozen.whole,
        main_params=FP32 * updated.whole,
        gradients=_gradients_of_one_process(setup, stage),
        moments=2 * state_bytes * updated.whole,
    )


def gradient_bytes(setup: Setup) -> int:
    """Of an element of a gradient that waits for the update."""
    return 2 if setup.precision.gradients == "bf16" else FP32


def _gradients_of_one_process(setup: Setup, stage: StageElements) -> int:
    """A matrix that gets one gradient a step keeps it as it comes out of the product, in the
    compute dtype; see `MainParams.expect`."""
    updated = stage.updated
    size = gradient_bytes(setup)
    is_summed = setup.num_micro_batches > 1 or setup.parallel.pipeline > 1
    if is_summed or not writes_copies(setup):
        return size * updated.whole
    once = updated.matrices - stage.used_twice.matrices
    return setup.compute_bytes * once + size * (updated.whole - once)


def writes_copies(setup: Setup) -> bool:
    """Whether our own AdamW updates main params and writes the weights too; the rule is that of
    `training.step.optimizer`."""
    if setup.shards or setup.precision.compute == "fp32":
        return False
    chosen = setup.optimizer.implementation
    reduced = "bf16" in (setup.optimizer.state_dtype, setup.precision.gradients)
    return chosen == "compiled" or reduced or (chosen == "auto" and setup.device == "cuda")
