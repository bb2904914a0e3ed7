"""What a process sends in a step, by axis. Imports no torch.

Volumes of a ring (Patarasu and Yuan 2009): an all-gather or reduce-scatter over n processes sends
(n - 1) / n of the whole tensor, an all-reduce twice that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import Role, describe
from triax.parallel.context.methods import SUM_BYTES, method_of, sent_bytes
from triax.parallel.stages import num_stages, rank_of_stage
from triax.planning.activations import Rules
from triax.planning.deepspeed_messages import deepspeed_zero_messages
from triax.planning.elements import elements_of
from triax.planning.message import Message, Operation
from triax.planning.setup import Setup
from triax.planning.stage import StagePart, parts_of
from triax.planning.states import gradient_bytes

_FP32, _INT64 = 4, 8
CHUNK_TOKENS = 1024
"""Of the loss; 16 times as many compiled."""


def messages_of_place(setup: Setup, pipeline_rank: int) -> list[Message]:
    """Of a process on a rank of the pipeline axis.

    Raises:
        UserError: the degrees don't multiply to the processes, or the layers can't be divided.
    """
    messages = []
    for part in parts_of(setup, pipeline_rank):
        messages += list(zero_messages(setup, part))
        messages += list(tensor_messages(setup, part))
        messages += list(context_messages(setup, part))
        messages += list(expert_messages(setup, part))
        messages += list(pipeline_messages(setup, part))
    return [message for message in messages if message.group > 1 and message.num]


def zero_messages(setup: Setup, part: StagePart) -> Iterator[Message]:
    """Weights gathered in the compute dtype, gradients reduced in fp32, block by block (see the
    table of `parallel.zero`), or as DeepSpeed does it."""
    if setup.parallel.engine == "deepspeed":
        yield from deepspeed_zero_messages(setup, part)
        return
    if not setup.shards:
        return
    shards, stage = setup.weight_shards, setup.parallel.zero_stage
    blocks, rest = part.elements.blocks.message, part.elements.rest.message
    rest += part.elements.follower.message
    all_blocks = blocks + part.frozen.blocks.message
    all_rest = rest + part.frozen.all.message - part.frozen.blocks.message
    num_blocks, num_rest = len(part.layers), int(all_rest > 0)
    gathers = setup.num_micro_batches if stage == 3 else 1
    of_blocks = 2 * gathers if stage == 3 else 1
    yield Message(
        "shard",
        "all-gather",
        "weights",
        of_blocks * num_blocks + gathers * num_rest,
        setup.compute_bytes * shards * (of_blocks * all_blocks + gathers * all_rest),
        shards,
    )
    reductions = setup.num_micro_batches if stage >= 2 else 1
    count = num_blocks + int(rest > 0)
    whole = _FP32 * (blocks + rest)
    yield Message(
        "shard",
        "reduce-scatter",
        "gradients",
        reductions * count,
        reductions * shards * whole,
        shards,
    )
    yield Message("replicate", "all-reduce", "gradients", count, whole, setup.weight_replicas)
    if setup.parallel.expert > 1:
        yield from _zero_messages_of_experts(setup, part, of_blocks, reductions)


def _zero_messages_of_experts(
    setup: Setup, part: StagePart, gathers: int, reductions: int
) -> Iterator[Message]:
    """Likewise, over the processes that have the same experts."""
    num_layers = len(_expert_layers(setup.model, part.layers))
    group, share = setup.spread.expert_shard, part.elements.blocks.expert_message
    all_share = share + part.frozen.blocks.expert_message
    num_trained = num_layers if share else 0
    yield Message(
        "expert shard",
        "all-gather",
        "weights",
        gathers * num_layers,
        setup.compute_bytes * group * gathers * all_share,
        group,
    )
    yield Message(
        "expert shard",
        "reduce-scatter",
        "gradients",
        reductions * num_trained,
        reductions * group * _FP32 * share,
        group,
    )
    replicas = setup.weight_replicas
    if setup.weight_shards == 1:
        replicas //= setup.parallel.expert
    yield Message("replicate", "all-reduce", "experts", num_trained, _FP32 * share, replicas)


def context_messages(setup: Setup, part: StagePart) -> Iterator[Message]:
    """Keys and values, or heads, of every layer's attention: the table of
    `parallel.context.methods.sent_bytes`. Full checkpointing sends once more forward."""
    size, item = setup.layout.context, setup.compute_bytes
    if size == 1:
        return
    model, tensor = describe(setup.model).architecture, setup.parallel.tensor
    method = method_of(setup.parallel.context_method, model, size, tensor)
    again = 1 if setup.parallel.activation_checkpointing == "full" else 0
    tokens, count = setup.micro_batch_tokens, setup.num_micro_batches
    layers = [model.layers[number].attention for number in part.layers]
    keys = sum(2 * each.num_query_groups // tensor * each.head_dim for each in layers)
    num = count * len(layers)

    def message(operation: Operation, what: str, each: int, total: int) -> Message:
        return Message("context", operation, what, num * each, count * total, size)

    if method == "gather":
        whole = size * tokens * keys
        gathers = 2 + again
        yield message("all-gather", "keys and values", gathers, gathers * whole * item)
        yield message("reduce-scatter", "gradients of keys", 1, whole * SUM_BYTES)
    elif method == "ring":
        passes = (2 + again) * (size - 1)
        yield message("send", "keys and values", passes, passes * tokens * keys * item)
        yield message("send", "gradients of keys", size, size * tokens * keys * SUM_BYTES)
    else:
        # What a process sends is that of all but itself.
        sent = sum(sent_bytes("ulysses", each, size, tensor, item).forward for each in layers)
        whole = round((2 + again) * sent * tokens * size / (size - 1))
        yield message("all-to-all", "heads", 2 * (2 + again), whole)


def expert_messages(setup: Setup, part: StagePart) -> Iterator[Message]:
    """Rows to where their experts are and back, forward and as gradients backward, and before them
    how many there are; of an even load (`parallel.experts.work_elsewhere`)."""
    group, kind = setup.parallel.expert, setup.parallel.activation_checkpointing
    if group == 1:
        return
    layers, count = _expert_layers(setup.model, part.layers), setup.num_micro_batches
    hidden = setup.compute_bytes * describe(setup.model).architecture.hidden_size
    rows = setup.micro_batch_tokens * sum(each.router.top_k for each in layers)
    passes = count * (6 if kind == "full" else 4)
    yield Message(
        "expert", "all-to-all", "rows", passes * len(layers), passes * rows * hidden, group
    )
    passes = count * (1 if kind == "none" else 2)
    num_bytes = passes * _INT64 * sum(each.num_experts for each in layers)
    yield Message("expert", "all-to-all", "numbers of rows", passes * len(layers), num_bytes, group)


@lru_cache(maxsize=1 << 12)
def _expert_layers(model: ModelConfig, layers: range) -> tuple[Experts, ...]:
    """Those of these layers that have experts."""
    mlps = (describe(model).architecture.layers[number].feed_forward for number in layers)
    return tuple(each for each in mlps if isinstance(each, Experts))


def tensor_messages(setup: Setup, part: StagePart) -> Iterator[Message]:
    """Activations between the split layers (Shoeybi et al. 2019: an all-reduce after attention and
    one after the feed-forward, forward and backward; Korthikanti et al. 2022: each as a
    reduce-scatter and an all-gather), of every micro-batch."""
    tensor, count = setup.parallel.tensor, setup.num_micro_batches
    if tensor == 1:
        return
    hidden = setup.compute_bytes * setup.micro_batch_tokens
    hidden *= describe(setup.model).architecture.hidden_size
    blocks = len(part.layers)
    again = setup.parallel.activation_checkpointing == "full"
    ends = int(part.is_first) + int(part.is_last)

    def message(operation: Operation, what: str, each: int) -> Message:
        return Message("tensor", operation, what, count * each, count * each * hidden, tensor)

    if setup.divides_tokens:
        # Full checkpointing stops computing again before the last product, so its sum isn't.
        gathers = (4 + 2 * again) * blocks + ends
        if part.is_first and describe(setup.model).architecture.num_positions is not None:
            gathers += 1  # the gradient of learned positions, of which each row may be anybody's
        scatters = (4 + again) * blocks + ends
        yield message("all-gather", "activations", gathers)
        yield message("reduce-scatter", "activations", scatters)
    else:
        yield message("all-reduce", "activations", (4 + again) * blocks + ends)
    if part.is_last:
        yield _loss_messages(setup)
    yield _whole_weight_messages(setup, part)


def _loss_messages(setup: Setup) -> Message:
    """One maximum and two sums for each token, in fp32, chunk by chunk; megatron-core's loss takes
    all at once, and the z-loss a maximum and a sum of its own."""
    tokens, count = setup.micro_batch_tokens, setup.num_micro_batches
    chunk = CHUNK_TOKENS * (16 if setup.parallel.compile else 1)
    num_chunks, each = -(-tokens // chunk), 3
    if setup.parallel.engine == "deepspeed":
        num_chunks, each = 1, 5 if setup.model.z_loss else 3
    return Message(
        "tensor",
        "all-reduce",
        "loss",
        each * num_chunks * count,
        each * _FP32 * tokens * count,
        setup.parallel.tensor,
    )


def _whole_weight_messages(setup: Setup, part: StagePart) -> Message:
    """Gradients of weights that every process of the tensor axis holds and that each uses for its
    own tokens or heads: a sum over the axis each, whenever ZeRO reduces, or adds up in fp32; under
    DeepSpeed after each backward pass."""
    num_whole, num_elements = _whole_weights(setup.model, part, setup.divides_tokens)
    count = setup.num_micro_batches
    is_each = setup.parallel.zero_stage >= 2 or setup.parallel.engine == "deepspeed"
    reductions = count if is_each else 1
    is_summed = not is_each and count > 1
    size = _FP32 if is_summed else setup.compute_bytes
    num_bytes = reductions * size * num_elements
    return Message(
        "tensor",
        "all-reduce",
        "whole weights",
        reductions * num_whole,
        num_bytes,
        setup.parallel.tensor,
    )


@lru_cache(maxsize=1 << 12)
def _whole_weights(model: ModelConfig, part: StagePart, divides_tokens: bool) -> tuple[int, int]:
    """How many there are, and their elements."""
    roles = {Role.HEAD_NORM, Role.ROUTER, Role.FACTOR}
    roles |= {Role.NORM} if divides_tokens else set()
    updated, _ = part.parameters(model)
    whole = [each.num_elements for each in updated if each.role in roles]
    return len(whole), sum(whole)


def pipeline_messages(setup: Setup, part: StagePart) -> Iterator[Message]:
    """Activations to the next stage and their gradients to the former one, unless it lives on the
    same process."""
    ranks, count = setup.parallel.pipeline, setup.num_micro_batches
    if ranks == 1:
        return
    share = Rules.of(setup).residual_share
    hidden = setup.compute_bytes * setup.micro_batch_tokens * share
    hidden *= describe(setup.model).architecture.hidden_size
    neighbours = int(part.sends_on) + int(part.sends_back)
    total = round(count * neighbours * hidden)
    yield Message("pipeline", "send", "activations and gradients", count * neighbours, total, ranks)
    yield _tied_message(setup, part)


def _tied_message(setup: Setup, part: StagePart) -> Message:
    """The embedding's weight to a tied head of another process, and the head's gradient back; where
    both are frozen, neither after the first step."""
    last = num_stages(setup.parallel) - 1
    is_apart = rank_of_stage(0, setup.parallel) != rank_of_stage(last, setup.parallel)
    is_end = part.is_first or part.is_last
    moves = setup.model.tie_embeddings and setup.model.lora is None
    num = int(moves and is_apart and is_end)
    embedding = describe(setup.model).parameters["embedding.weight"]
    here = elements_of(embedding, setup.spread)
    if setup.parallel.engine == "deepspeed":
        num_bytes = num * here.whole * (_FP32 if part.is_last else setup.compute_bytes)
    else:
        of_weight = _FP32 if setup.shards else setup.compute_bytes
        size = gradient_bytes(setup) if part.is_last else of_weight
        num_bytes = num * size * (here.shard if setup.shards else here.whole)
    return Message("pipeline", "send", "tied embedding", num, num_bytes, setup.parallel.pipeline)
