"""Seconds that one GPU computes for a layer and a micro-batch, without any message. No torch.

Letters: M tokens, K a weight's inputs, N its outputs; D hidden size, H heads, G key/value heads, F
feed-forward size, V vocabulary, T tokens of a sequence. K beside H and G is the head dimension.
Experts are taken to have even loads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from triax.models.architecture import Experts, FeedForwardKind, Layer
from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, Parameter, Role, describe
from triax.planning.devices import Device
from triax.planning.elements import Spread, local_shape
from triax.planning.setup import COMPUTE_BYTES, Setup

TILE_ROWS, TILE_COLUMNS = 128, 256
"""Of a product's result, which one streaming multiprocessor makes (CUTLASS's usual largest)."""
_RAMP = 256
"""Inputs of a product whose time is lost to filling and emptying a tile's pipeline."""
_ATTENTION_RAMP = 512
"""Likewise tokens of a sequence in fused attention."""


class Product(NamedTuple):
    """A matrix product of a layer, forward, on one process."""

    outputs: int
    inputs: int
    rows_per_token: float = 1.0
    """Over all groups."""
    groups: int = 1
    """Products of the same shape at once: a process's experts."""
    compute: str = ""
    """Its precision, where it isn't the run's."""


class Seconds(NamedTuple):
    """Of a layer, or of several, for one micro-batch."""

    products: float = 0.0
    """Forward alone; backward takes twice that."""
    attention: float = 0.0
    """Forward alone; backward takes 2.5 times that (Dao 2023: 5 products of it, not 2)."""
    elementwise: float = 0.0
    """Forward alone; backward takes twice that."""

    @property
    def forward(self) -> float:
        return self.products + self.attention + self.elementwise

    @property
    def backward(self) -> float:
        return 2 * self.products + 2.5 * self.attention + 2 * self.elementwise

    def plus(self, other: Seconds) -> Seconds:
        return Seconds(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Seconds) -> Seconds:
        return Seconds(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Work:
    """What decides a layer's seconds.

    Attributes:
        tokens: M of a micro-batch on one process.
        seq_len: T, over all processes that share a sequence.
        tensor: processes that divide every layer.
        divides_tokens: sequence parallelism.
        compute: `precision.compute`.
        is_compiled: elementwise operations are fused.
        expert: processes over which experts are divided.
    """

    tokens: int
    seq_len: int
    tensor: int
    divides_tokens: bool
    compute: str
    is_compiled: bool
    expert: int = 1

    @staticmethod
    def of(setup: Setup) -> Work:
        """That of a run's micro-batch."""
        return Work(
            setup.micro_batch_tokens,
            setup.seq_len,
            setup.parallel.tensor,
            setup.divides_tokens,
            setup.precision.compute,
            setup.parallel.compile,
            setup.parallel.expert,
        )

    @property
    def size(self) -> int:
        """Bytes of an activation."""
        return COMPUTE_BYTES[self.compute]


def product_seconds(m: int, k: int, n: int, compute: str, device: Device, groups: int = 1) -> float:
    """Of a product (M, K) by (K, N): 2 MKN operations at the rate that large products reach, less
    what is lost where its tiles don't fill the last round of processors and to each tile's start;
    at least its bytes over the memory's bandwidth (the roofline, Williams et al. 2009). Or of
    several such products in one kernel."""
    tiles = groups * -(-m // TILE_ROWS) * -(-n // TILE_COLUMNS)
    rounds = -(-tiles // device.card.num_processors)
    filled = groups * m * n / (rounds * device.card.num_processors * TILE_ROWS * TILE_COLUMNS)
    reached = device.flops(compute) * filled * k / (k + _RAMP)
    size = 1 if compute == "fp8" else COMPUTE_BYTES[compute]
    num_bytes = COMPUTE_BYTES[compute] * (m * n) + (m * k + k * n) * size
    return groups * max(2 * m * k * n / reached, num_bytes / device.memory_bytes_per_second)


def attention_seconds(layer: Layer, work: Work, device: Device) -> float:
    """Scores and mixed values, forward: 4 HK operations for each token that a token sees, half of T
    on average, or its window."""
    attention = layer.attention
    seen = min(work.seq_len / 2, attention.window or work.seq_len)
    flops = 4 * attention.num_heads / work.tensor * attention.head_dim * seen * work.tokens
    ramp = work.seq_len / (work.seq_len + _ATTENTION_RAMP)
    return flops / (device.attention_flops * ramp)


def elementwise_bytes(layer: Layer, width: int, work: Work) -> float:
    """What passes over activations read and write for a token, forward, each fused with its
    neighbours: norms and residual sums 9 D, rotary turns 2 (H + G) K, the activation function 3 F
    (2 F without a gate), and in fp8 the casts of each product's input: 2 bytes read, 1 written, and
    1 for its transpose; uncompiled, with the fp32 copies in between, 2.5 times as much.

    All of it twice: torchtitan 0.2.2, compiled, took on the H200 where `devices.REACH` was measured
    2.0 and 2.7 times the ideal passes beside its products, attention and update (1.5B and 3.6B)."""
    attention, mlp = layer.attention, layer.feed_forward
    share = 1 / work.tensor if work.divides_tokens else 1.0
    if isinstance(mlp, Experts):
        hidden, is_gated, of_experts = mlp.shared_hidden_size, True, _expert_bytes(mlp, width, work)
    else:
        hidden, is_gated = mlp.hidden_size, mlp.kind is FeedForwardKind.SWIGLU
        of_experts = 0.0
    turned = 0 if attention.rotary is None else attention.num_heads + attention.num_query_groups
    divided = 2 * turned * attention.head_dim + (3 if is_gated else 2) * hidden
    passes = work.size * (9 * width * share + divided / work.tensor)
    if not work.is_compiled or of_experts:
        passes *= 2.5
    if work.compute == "fp8":
        inputs = attention.num_heads * attention.head_dim + hidden
        passes += 4 * (2 * width + inputs / work.tensor)
    return 2 * (passes + of_experts)


def _expert_bytes(layer: Experts, width: int, work: Work) -> float:
    """Of experts, which nothing fuses: rows are put into their order and back, twice more if they
    come from other processes (2 KD each), weighted in fp32 and added (5 KD); gate and up become
    their product (5 KF); scores in fp32 some six times. K is the number of a token's experts."""
    top_k = layer.router.top_k
    rows = (9 if work.expert == 1 else 13) * top_k * width
    inner = 5 * top_k * layer.hidden_size / work.tensor
    return work.size * (rows + inner) + 4 * (width + 6 * layer.num_experts)


@lru_cache(maxsize=4096)
def layer_seconds(
    layer: Layer, width: int, products: tuple[Product, ...], work: Work, device: Device
) -> Seconds:
    """Of a layer, forward."""
    seconds = 0.0
    for each in products:
        rows = round(work.tokens * each.rows_per_token / each.groups)
        compute = each.compute or work.compute
        seconds += product_seconds(rows, each.inputs, each.outputs, compute, device, each.groups)
    elementwise = work.tokens * elementwise_bytes(layer, width, work)
    return Seconds(
        seconds,
        attention_seconds(layer, work, device),
        elementwise / device.memory_bytes_per_second,
    )


@lru_cache(maxsize=1024)
def seconds_by_depth(model: ModelConfig, work: Work, device: Device) -> tuple[Seconds, ...]:
    """Sums over the layers before each, and over all at the end."""
    architecture = describe(model).architecture
    sums = [Seconds()]
    spread = Spread(work.tensor, expert=work.expert)
    for layer, products in zip(architecture.layers, _products_by_layer(model, spread), strict=True):
        here = layer_seconds(layer, architecture.hidden_size, products, work, device)
        sums.append(sums[-1].plus(here))
    return tuple(sums)


def _products_by_layer(model: ModelConfig, spread: Spread) -> Iterator[tuple[Product, ...]]:
    layers = [row for row in describe(model).table if 0 <= row.layer < model.num_layers]
    for _, rows in itertools.groupby(layers, key=lambda row: row.layer):
        yield tuple(_joint_products(rows, spread))


def _joint_products(rows: Iterable[Parameter], spread: Spread) -> Iterator[Product]:
    """Weights that read the same input as one, but for those of experts."""
    factors = [row for row in rows if row.flops_per_token]

    def reader(row: Parameter) -> tuple[str, bool]:
        if row.role in EXPERTS or row.role is Role.ROUTER:
            return row.name, False
        return row.name.rsplit(".", 2)[0], row.role is Role.COLUMN

    for _, readers in itertools.groupby(factors, key=reader):
        first, *others = readers
        *groups, outputs, inputs = local_shape(first, spread)
        if first.role in EXPERTS:
            rows_per_token = first.active_share * first.shape[0]
            yield Product(outputs, inputs, rows_per_token, groups[0])
        elif first.role is Role.ROUTER:
            yield Product(outputs, inputs, compute="fp32")
        else:
            outputs += sum(local_shape(row, spread)[0] for row in others)
            yield Product(outputs, inputs)


@lru_cache(maxsize=1024)
def head_seconds(model: ModelConfig, work: Work, device: Device) -> Seconds:
    """Of the head and the loss, forward and backward together as if backward were twice forward:
    logits are written, read for their sums, and read and written for their gradient; uncompiled
    some ten passes in fp32. In half precision even where blocks are in fp8."""
    architecture = describe(model).architecture
    rows = architecture.vocab_size // work.tensor
    compute = "bf16" if work.compute == "fp8" else work.compute
    product = product_seconds(work.tokens, architecture.hidden_size, rows, compute, device)
    passes = 4 * work.size if work.is_compiled else 4 * work.size + 10 * 4
    logits = work.tokens * rows * passes / device.memory_bytes_per_second
    return Seconds(product, 0.0, logits / 3)
