"""Checks of layers with experts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from triax.launcher.config.problems import Problem
from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.layout import Layout

_UNIT = 8
"""What the sizes of grouped products are multiples of: 16 bytes of bf16."""


def experts_divide(
    model: ModelConfig, parallel: ParallelConfig, world_size: int | None
) -> Iterator[Problem]:
    """Every process of the expert axis gets equally many experts."""
    if parallel.expert == 1:
        return
    experts = _experts(model)
    if experts is None:
        yield Problem("parallel.expert", "needs a model with experts, [model.experts]: use 1")
        return
    if experts.num_experts % parallel.expert:
        yield Problem(
            "parallel.expert",
            f"{parallel.expert} doesn't divide model.experts.num_experts {experts.num_experts}",
        )
    num_shards = _num_shards(parallel, world_size)
    if num_shards is None:
        return
    if num_shards % parallel.expert:
        yield Problem(
            "parallel.expert",
            f"{parallel.expert} doesn't divide the {num_shards} processes that share a replica's "
            "tokens (all / pipeline / tensor / replicate), over which experts are divided: use a "
            "divisor of it",
        )
    elif parallel.zero_stage > 0 and model.hidden_size % (num_shards // parallel.expert):
        yield Problem(
            "model.hidden_size",
            f"{model.hidden_size} is not a multiple of the {num_shards // parallel.expert} "
            "processes that share the weights of the same experts: raise parallel.expert or "
            "parallel.replicate",
        )


def _num_shards(parallel: ParallelConfig, world_size: int | None) -> int | None:
    """Over how many processes a replica's tokens are divided; None where it isn't known."""
    data_parallel = Layout.data_parallel_of(parallel, world_size)
    if data_parallel is None or data_parallel % parallel.replicate:
        return None
    shares = data_parallel if parallel.zero_stage == 0 else data_parallel // parallel.replicate
    return shares * parallel.context


def experts_are_recomputed(parallel: ParallelConfig) -> Iterator[Problem]:
    """What selective checkpointing has seen comes again in the backward pass."""
    if (
        parallel.expert > 1
        and parallel.zero_stage == 3
        and parallel.activation_checkpointing == "selective"
    ):
        yield Problem(
            "parallel.activation_checkpointing",
            "stage 3 gathers the experts' weights within blocks, in the backward pass at other "
            "moments than before, and torch stops at messages that selective hasn't seen: use "
            "full, or parallel.zero_stage = 2",
        )


def experts_are_multiplied(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig
) -> Iterator[Problem]:
    """Grouped products take the sizes and the precision."""
    experts = _experts(model)
    if experts is None:
        return
    share = " / parallel.tensor" if parallel.tensor > 1 else ""
    for path, text, size in (
        ("model.hidden_size", "", model.hidden_size),
        ("model.experts.ffn_hidden_size", share, experts.hidden_size // parallel.tensor),
    ):
        if size % _UNIT:
            yield Problem(
                path,
                f"{path}{text} = {size} is not a multiple of {_UNIT}, as the grouped products of "
                "experts need",
            )
    if precision.compute == "fp8":
        yield Problem(
            "precision.compute", 'experts are multiplied in bf16 or fp32, not in fp8: use "bf16"'
        )


def heads_are_normalised_whole(model: ModelConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    """A norm over all heads needs all of them."""
    layers = describe(model).architecture.layers
    if parallel.tensor > 1 and any(layer.attention.norms_heads_jointly for layer in layers):
        yield Problem(
            "parallel.tensor",
            "divides a token's heads, and model.joint_qk_norm is over all of them: use 1",
        )


def deepspeed_has_no_experts(model: ModelConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    """Experts are for the native engine."""
    if parallel.engine == "deepspeed" and _experts(model) is not None:
        yield Problem(
            "parallel.engine",
            "DeepSpeed and megatron-core have experts of their own, with other routers, balance "
            'and checkpoints than [model.experts] says: use engine = "native"',
        )


def _experts(model: ModelConfig) -> Experts | None:
    """Those of the first layer that has some."""
    layers = describe(model).architecture.layers
    mlps = (layer.feed_forward for layer in layers)
    return next((mlp for mlp in mlps if isinstance(mlp, Experts)), None)
