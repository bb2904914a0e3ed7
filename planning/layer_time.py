"""Seconds that one GPU computes for a layer and a micro-batch, without any message. No torch.

Letters: M tokens, K a weight's inputs, N its outputs; D hidden size, H heads, G key/value heads, F
feed-forward size, V vocabulary, T tokens of a sequence. K beside H and G is the head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from triax.models.architecture import FeedForwardKind, Layer
from triax.models.config import ModelConfig
from triax.models.description import Parameter, Role, describe
from triax.planning.devices import Device
from triax.planning.elements import local_shape
from triax.planning.setup import COMPUTE_BYTES, Setup, dense

TILE_ROWS, TILE_COLUMNS = 128, 256
"""Of a product's result, which one streaming multiprocessor makes (CUTLASS's usual largest)."""
_RAMP = 256
"""Inputs of a product whose time is lost to filling and emptying a tile's pipeline."""
_ATTENTION_RAMP = 512
"""Likewise tokens of a sequence in fused attention."""


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
    """

    tokens: int
    seq_len: int
    tensor: int
    divides_tokens: bool
    compute: str
    is_compiled: bool

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
        )

    @property
    def size(self) -> int:
        """Bytes of an activation."""
        return COMPUTE_BYTES[self.compute]


def product_seconds(m: int, k: int, n: int, compute: str, device: Device) -> float:
    """Of a product (M, K) by (K, N): 2 MKN operations at the rate that large products reach, less
    what is lost where its tiles don't fill the last round of processors and to each tile's start;
    at least its bytes over the memory's bandwidth (the roofline, Williams et al. 2009)."""
    tiles = -(-m // TILE_ROWS) * -(-n // TILE_COLUMNS)
    rounds = -(-tiles // device.card.num_processors)
    filled = m * n / (rounds * device.card.num_processors * TILE_ROWS * TILE_COLUMNS)
    reached = device.flops(compute) * filled * k / (k + _RAMP)
    num_bytes = COMPUTE_BYTES[compute] * (m * n) + (m * k + k * n) * (1 if compute == "fp8" else 2)
    return max(2 * m * k * n / reached, num_bytes / device.memory_bytes_per_second)


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
    attention, hidden = layer.attention, dense(layer).hidden_size
    share = 1 / work.tensor if work.divides_tokens else 1.0
    is_gated = dense(layer).kind is FeedForwardKind.SWIGLU
    turned = 0 if attention.rotary is None else attention.num_heads + attention.num_query_groups
    divided = 2 * turned * attention.head_dim + (3 if is_gated else 2) * hidden
    passes = work.size * (9 * width * share + divided / work.tensor)
    if not work.is_compiled:
        passes *= 2.5
    if work.compute == "fp8":
        inputs = attention.num_heads * attention.head_dim + hidden
        passes += 4 * (2 * width + inputs / work.tensor)
    return 2 * passes


@lru_cache(maxsize=4096)
def layer_seconds(
    layer: Layer, width: int, weights: tuple[tuple[int, ...], ...], work: Work, device: Device
) -> Seconds:
    """Of a layer, forward.

    Args:
        weights: (outputs, inputs) of each product, on one process.
    """
    products = sum(product_seconds(work.tokens, k, n, work.compute, device) for n, k in weights)
    elementwise = work.tokens * elementwise_bytes(layer, width, work)
    return Seconds(
        products,
        attention_seconds(layer, work, device),
        elementwise / device.memory_bytes_per_second,
    )


@lru_cache(maxsize=1024)
def seconds_by_depth(model: ModelConfig, work: Work, device: Device) -> tuple[Seconds, ...]:
    """Sums over the layers before each, and over all at the end."""
    architecture = describe(model).architecture
    sums = [Seconds()]
    for layer, weights in zip(architecture.layers, _products_by_layer(model, work), strict=True):
        here = layer_seconds(layer, architecture.hidden_size, weights, work, device)
        sums.append(sums[-1].plus(here))
    return tuple(sums)


def _products_by_layer(model: ModelConfig, work: Work) -> Iterator[tuple[tuple[int, ...], ...]]:
    layers = [row for row in describe(model).table if 0 <= row.layer < model.num_layers]
    for _, rows in itertools.groupby(layers, key=lambda row: row.layer):
        yield tuple(_joint_products(rows, work.tensor))


def _joint_products(rows: Iterable[Parameter], tensor: int) -> Iterator[tuple[int, ...]]:
    """(outputs, inputs) of each product; weights that read the same input as one."""
    factors = [row for row in rows if row.flops_per_token]

    def reader(row: Parameter) -> tuple[str, bool]:
        return row.name.rsplit(".", 2)[0], row.role is Role.COLUMN

    for _, readers in itertools.groupby(factors, key=reader):
        shapes = [local_shape(row, tensor) for row in readers]
        yield sum(shape[0] for shape in shapes), shapes[0][1]


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
