"""Seconds of a training step, by part. Imports no torch.

A step is the micro-batches of the slowest pipeline rank, the pipeline's idle time, the messages
that nothing hides, and the update. What overlaps what is said in each function.

Letters: p ranks of the pipeline, m micro-batches of a step, v stages of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from triax.models.config import ModelConfig
from triax.models.counts import flops_per_token
from triax.parallel.stages import SCHEDULES
from triax.planning.devices import Device, exchange_bandwidth, group_bandwidth
from triax.planning.layer_time import Seconds, Work, head_seconds, seconds_by_depth
from triax.planning.message import Message
from triax.planning.messages import (
    context_messages,
    expert_messages,
    pipeline_messages,
    tensor_messages,
    zero_messages,
)
from triax.planning.setup import Setup
from triax.planning.stage import StagePart, heaviest_ranks, parts_of
from triax.planning.states import states_of

LINK_REACH = 0.80
"""Of a link's bandwidth, what large collectives reach (NCCL's tests: some 360 of 450 GB/s)."""
LATENCY = 15e-6
"""Seconds that a collective takes whatever its size, within a node."""
HOP = 3e-6
"""And for each node that a ring goes through."""
INTERFERENCE = 0.1
"""Of hidden messages: they take processors and bandwidth from the passes that hide them."""
HIDDEN_BY_ASYNC = 0.7
"""Of tensor parallelism's messages, what `async_tensor` hides behind products in pieces (Wang et
al. 2023 hide most of it)."""
_STEP_SECONDS = 2e-3
"""The norm's all-reduce, the guard, and what the host does between steps."""


@dataclass(frozen=True)
class Software:
    """How another framework's step differs from ours, for holding the forecast to its figures.

    Attributes:
        hides_tensor: share of tensor parallelism's messages behind products.
        selective_products: share of forward products that its selective checkpointing computes
            again; ours none.
        elementwise: its elementwise passes, in ours.
        attention: its attention, in ours.
    """

    hides_tensor: float | None = None
    selective_products: float = 0.0
    elementwise: float = 1.0
    attention: float = 1.0


OURS = Software()


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the process that needs the longest.

    Attributes:
        products: matrix products.
        attention: scores and mixed values.
        elementwise: norms, activation functions, rotary turns, casts, the loss.
        recomputation: what checkpointing computes again.
        objective: forward passes without gradients that it takes.
        tensor_messages, context_messages, expert_messages, zero_messages, pipeline_messages: what
            nothing hides.
        bubble: the pipeline's idle time.
        optimizer: the update and what is between steps.
    """

    products: float
    attention: float
    elementwise: float
    recomputation: float
    objective: float
    tensor_messages: float
    context_messages: float
    expert_messages: float
    zero_messages: float
    pipeline_messages: float
    bubble: float
    optimizer: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, part) for part in TIME_PARTS))

    @property
    def binding(self) -> str:
        """What takes the most time beside products and attention; or these."""
        computing = self.products + self.attention
        others = {part: getattr(self, part) for part in TIME_PARTS[2:]}
        worst = max(others, key=lambda part: others[part])
        return worst if others[worst] > 0.5 * computing else "products"


TIME_PARTS = tuple(field.name for field in fields(StepTime))


@dataclass(frozen=True)
class _RankTime:
    """Seconds of one micro-batch on a rank of the pipeline."""

    compute: Seconds
    backward_products: int
    again: float
    tensor_messages: float
    context_messages: float
    expert_messages: float

    @property
    def messages(self) -> float:
        return self.tensor_messages + self.context_messages + self.expert_messages

    @property
    def forward(self) -> float:
        return self.compute.forward + self.messages / 2

    @property
    def backward(self) -> float:
        frozen = (2 - self.backward_products) * self.compute.products
        return self.compute.backward - frozen + self.again + self.messages / 2

    @property
    def total(self) -> float:
        return self.forward + self.backward


def step_time(setup: Setup, device: Device, software: Software = OURS) -> StepTime:
    """Forecast a step.

    Raises:
        UserError: the layout is none, or the device can't compute so.
    """
    ranks = [parts_of(setup, rank) for rank in heaviest_ranks(setup)]
    times = [_rank_time(setup, parts, device, software) for parts in ranks]
    slowest = max(range(len(ranks)), key=lambda rank: times[rank].total)
    time, parts, count = times[slowest], ranks[slowest], setup.num_micro_batches
    return StepTime(
        products=count * (1 + setup.backward_products) * time.compute.products,
        attention=count * 3.5 * time.compute.attention,
        elementwise=count * 3 * time.compute.elementwise,
        recomputation=count * time.again,
        objective=setup.passes_alone * (count + setup.parallel.pipeline - 1) * time.forward,
        tensor_messages=count * time.tensor_messages,
        context_messages=count * time.context_messages,
        expert_messages=count * time.expert_messages,
        zero_messages=_exposed_zero(setup, parts, time, device),
        pipeline_messages=_exposed_pipeline(setup, parts, device),
        bubble=bubble_seconds(setup, time.forward, time.backward),
        optimizer=_optimizer_seconds(setup, parts, device) + _STEP_SECONDS,
    )


def tokens_per_second(setup: Setup, time: StepTime) -> float:
    """Of all devices together."""
    return setup.tokens_per_step / time.total


def model_flops_utilization(setup: Setup, time: StepTime, device: Device) -> float:
    """MFU (Chowdhery et al. 2022, appendix B): the model's FLOPs without recomputation, attention
    not halved, over the data sheet's peak."""
    flops = tokens_per_second(setup, time) * _flops_per_token(setup.model, setup.seq_len)
    return flops / (device.peak_flops(setup.precision.compute) * setup.world_size)


@lru_cache(maxsize=64)
def _flops_per_token(model: ModelConfig, seq_len: int) -> int:
    return flops_per_token(model, seq_len)


def _rank_time(
    setup: Setup, parts: Sequence[StagePart], device: Device, software: Software
) -> _RankTime:
    work = Work.of(setup)
    sums = seconds_by_depth(setup.model, work, device)
    blocks, head = Seconds(), Seconds()
    for part in parts:
        blocks = blocks.plus(sums[part.layers.stop].minus(sums[part.layers.start]))
        if part.is_last:
            head = head_seconds(setup.model, work, device)
    blocks = blocks._replace(
        elementwise=blocks.elementwise * software.elementwise,
        attention=blocks.attention * software.attention,
    )
    again = {
        "none": 0.0,
        "selective": blocks.elementwise + software.selective_products * blocks.products,
        "full": blocks.forward,
    }[setup.parallel.activation_checkpointing]
    messages = [message for part in parts for message in tensor_messages(setup, part)]
    seconds = sum(message_seconds(setup, each, device) for each in messages)
    hidden = HIDDEN_BY_ASYNC if setup.parallel.async_tensor else 0.0
    if software.hides_tensor is not None:
        hidden = software.hides_tensor
    of_experts = sum(
        message_seconds(setup, message, device)
        for part in parts
        for message in expert_messages(setup, part)
    )
    return _RankTime(
        blocks.plus(head),
        setup.backward_products,
        again,
        seconds * (1 - hidden) / setup.num_micro_batches,
        _exposed_context(setup, parts, blocks.attention, device),
        of_experts / setup.num_micro_batches,
    )


def _exposed_context(
    setup: Setup, parts: Sequence[StagePart], attention: float, device: Device
) -> float:
    """Of a micro-batch: gathers and exchanges stand before what needs them; a ring's pieces travel
    while those before them are attended to."""
    messages = [message for part in parts for message in context_messages(setup, part)]
    seconds = sum(message_seconds(setup, each, device) for each in messages)
    seconds /= setup.num_micro_batches
    if any(each.operation == "send" for each in messages):
        return max(seconds - 3.5 * attention, INTERFERENCE * seconds)
    return seconds


def message_seconds(setup: Setup, message: Message, device: Device) -> float:
    """Of all messages of a kind, in rings over the link that the axis has; rows of experts go each
    its own way, those to other nodes through the process's own network card."""
    if not message.num or message.group == 1:
        return 0.0
    stride = stride_of(setup, message.axis)
    if message.operation == "send":
        # Neighbours on the axis: across nodes where the axis reaches beyond one.
        bandwidth = group_bandwidth(device, stride, 2)
    elif message.operation == "all-to-all":
        bandwidth = exchange_bandwidth(device, stride, message.group)
    else:
        bandwidth = group_bandwidth(device, stride, message.group)
    nodes = -(-stride * message.group // device.card.gpus_per_node)
    latency = LATENCY if message.operation == "send" else LATENCY + HOP * nodes
    return message.sent_bytes / (LINK_REACH * bandwidth) + message.num * latency


def stride_of(setup: Setup, axis: str) -> int:
    """How far apart neighbours on an axis are, in processes."""
    layout = setup.layout
    inner = {"tensor": 1, "context": layout.tensor, "shard": layout.tensor}
    inner["expert"] = inner["shard"]
    inner["expert shard"] = inner["shard"] * setup.parallel.expert
    inner["replicate"] = inner["shard"] * setup.weight_shards
    inner["pipeline"] = inner["replicate"] * setup.weight_replicas
    return inner[axis]


def _exposed_zero(
    setup: Setup, parts: Sequence[StagePart], time: _RankTime, device: Device
) -> float:
    """What ZeRO's messages take longer than the passes that they run beside: weights are gathered
    for the next block while one computes, gradients reduced while the one before is computed
    backward. The first block's gather and the last one's reduction have nothing to hide behind, and
    hidden ones slow down what hides them."""
    gather = reduce = 0.0
    num_blocks = 0
    for part in parts:
        num_blocks += len(part.layers) + 1
        for message in zero_messages(setup, part):
            seconds = message_seconds(setup, message, device)
            if message.operation == "all-gather":
                gather += seconds
            else:
                reduce += seconds
    passes = setup.num_micro_batches
    if setup.parallel.zero_stage < 3:
        ends = gather / num_blocks
        exposed = max(gather - time.forward, ends)
    else:
        ends = gather / num_blocks / 2
        exposed = max(gather - passes * (time.forward + time.backward), ends)
    beside = passes if setup.parallel.zero_stage >= 2 else 1
    exposed += max(reduce - beside * time.backward, reduce / num_blocks)
    return exposed + INTERFERENCE * (gather + reduce - exposed)


def _exposed_pipeline(setup: Setup, parts: Sequence[StagePart], device: Device) -> float:
    """Sends between stages wait for their peers only while the pipeline fills and drains, and for
    their latency; half of them are taken as hidden behind the other direction's passes."""
    messages = [message for part in parts for message in pipeline_messages(setup, part)]
    return sum(message_seconds(setup, each, device) for each in messages) / 2


def bubble_seconds(setup: Setup, forward: float, backward: float) -> float:
    """The pipeline's idle time, of passes that take the slowest rank so long for a micro-batch.

    gpipe and 1F1B (p - 1)(f + b); interleaved 1/v of that (Narayanan et al. 2021, section 2.2);
    with the weights' gradients w = b / 2 in the gaps (p - 1)(f + b - 2 w) / v (Qi et al. 2023),
    ZBV nothing where f = b - w = w (Qi et al. 2024), DualPipe (p / 2 - 1)(f + b + b - 3 w)
    (DeepSeek-AI 2024, table 2).
    """
    ranks, name = setup.parallel.pipeline, setup.parallel.pipeline_schedule
    if ranks == 1:
        return 0.0
    weights = backward / 2
    if not SCHEDULES[name].has_several_stages:
        return (ranks - 1) * (forward + backward)
    per_rank = 2 if SCHEDULES[name].is_v else setup.parallel.stages_per_rank
    match name:
        case "interleaved-1f1b":
            return (ranks - 1) * (forward + backward) / per_rank
        case "interleaved-zero-bubble":
            return (ranks - 1) * (forward + backward - 2 * weights) / per_rank
        case "zbv-zero-bubble":
            return (ranks - 1) * abs(forward + backward - 3 * weights) / per_rank
        case _:
            idle = forward + 2 * backward - 3 * weights
            return (ranks / 2 - 1) * max(idle, 0.0) / per_rank


def _optimizer_seconds(setup: Setup, parts: Sequence[StagePart], device: Device) -> float:
    """An update reads weights, gradients and moments and writes weights and moments, and the
    weights once more in the compute dtype where it holds those; the norm reads gradients too."""
    num_bytes = 0
    for part in parts:
        states = states_of(setup, part)
        num_bytes += 2 * (states.main_params + states.moments) + 2 * states.gradients
        num_bytes += states.weights
    offloaded = sum(states_of(setup, part).host for part in parts)
    over_pcie = offloaded / 25e9  # both ways over a PCIe link of 50 GB/s
    return num_bytes / device.memory_bytes_per_second + over_pcie
