"""All that a plan says of one layout, brought together. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triax.models.counts import flops_per_token, num_active_parameters, num_parameters
from triax.planning.devices import Device, link_of_group
from triax.planning.memory import Memory, memory_of_place
from triax.planning.message import Message
from triax.planning.messages import messages_of_place
from triax.planning.search import Outcome, evaluate
from triax.planning.setup import Setup
from triax.planning.stage import heaviest_ranks, parts_of
from triax.planning.states import FP32
from triax.planning.time import message_seconds, stride_of

STORAGE_GBS = 2.0
"""GB/s that a node writes checkpoints with, unless it is given: a guess at shared file systems."""
_DAY = 86_400


@dataclass(frozen=True)
class RankMemory:
    """Memory of the processes at one place of the pipeline.

    Attributes:
        pipeline_rank: the place.
        layers: the blocks that it holds.
        memory: of the one of them that needs the most.
    """

    pipeline_rank: int
    layers: Sequence[int]
    memory: Memory


@dataclass(frozen=True)
class Traffic:
    """What one process sends on an axis in a step.

    Attributes:
        message: the kind of messages.
        link: what carries them: `link` within a node, `fabric` across.
        seconds: that they take by themselves, hidden or not.
    """

    message: Message
    link: str
    seconds: float


@dataclass(frozen=True)
class Length:
    """How long a run of so many tokens is.

    Attributes:
        tokens: of the run, whole steps.
        steps: updates.
        days: of all devices together.
        gpu_hours: over all devices.
        usd: None where no price is given.
    """

    tokens: int
    steps: int
    days: float
    gpu_hours: float
    usd: float | None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        num_bytes: every weight in fp32 and both moments, once.
        seconds: to write it, all nodes at once.
    """

    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """Of one layout on one kind of machine.

    Attributes:
        num_parameters, num_active: of the model, and of these what a token passes.
    """

    outcome: Outcome
    device: Device
    num_parameters: int
    num_active: int
    flops_per_token: int
    ranks: Sequence[RankMemory]
    traffic: Sequence[Traffic]
    checkpoint: Checkpoint


def make_forecast(setup: Setup, device: Device, storage_gbs: float = STORAGE_GBS) -> Forecast:
    """All of it.

    Raises:
        UserError: it is no layout of so many processes, or the device can't compute so.
    """
    return Forecast(
        evaluate(setup, device),
        device,
        num_parameters(setup.model),
        num_active_parameters(setup.model),
        flops_per_token(setup.model, setup.seq_len),
        [_rank_memory(setup, rank) for rank in range(setup.parallel.pipeline)],
        list(_traffic(setup, device)),
        _checkpoint(setup, device, storage_gbs),
    )


def length_of(forecast: Forecast, tokens: float, usd_per_gpu_hour: float | None = None) -> Length:
    """A run of so many tokens, rounded down to whole steps; at least one."""
    setup = forecast.outcome.setup
    steps = max(1, int(tokens // setup.tokens_per_step))
    seconds = steps * forecast.outcome.time.total
    hours = seconds / 3600 * setup.world_size
    return Length(
        steps * setup.tokens_per_step,
        steps,
        seconds / _DAY,
        hours,
        None if usd_per_gpu_hour is None else hours * usd_per_gpu_hour,
    )


def tokens_in(forecast: Forecast, days: float) -> float:
    """How many tokens a run gets through."""
    return forecast.outcome.tokens_per_second * days * _DAY


def _rank_memory(setup: Setup, rank: int) -> RankMemory:
    layers = [layer for part in parts_of(setup, rank) for layer in part.layers]
    return RankMemory(rank, layers, memory_of_place(setup, rank))


def _traffic(setup: Setup, device: Device) -> list[Traffic]:
    """Of the pipeline rank that sends the most."""
    of_ranks = [messages_of_place(setup, rank) for rank in heaviest_ranks(setup)]
    busiest = max(of_ranks, key=lambda each: sum(message.sent_bytes for message in each))
    traffic = []
    for message in busiest:
        size = 2 if message.operation == "send" else message.group
        link = link_of_group(device, stride_of(setup, message.axis), size)
        traffic.append(Traffic(message, link, message_seconds(setup, message, device)))
    return traffic


def _checkpoint(setup: Setup, device: Device, storage_gbs: float) -> Checkpoint:
    moments = 2 * (2 if setup.optimizer.state_dtype == "bf16" else FP32)
    num_bytes = num_parameters(setup.model) * (FP32 + moments)
    nodes = -(-setup.world_size // device.card.gpus_per_node)
    return Checkpoint(num_bytes, num_bytes / (nodes * storage_gbs * 1e9))
