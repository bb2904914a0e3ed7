"""The table of a model's parameters, from which everything else reads its shape. Imports no torch.

Tensor parallelism and fp8 read the roles, pipeline stages the cost by layer, the optimizer what
decays, initial weights their distribution, counts and FLOPs the sizes.

The scheme of roles is that of Shoeybi et al. 2019 (column, row and vocabulary splits) and
Korthikanti et al. 2022 (sequence parallelism).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache

from triax.models.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    FeedForwardKind,
    Layer,
    Norm,
)
from triax.models.config import ModelConfig
from triax.models.lora import FACTORS, LoraConfig, target_of


class Role(StrEnum):
    """How tensor-parallel processes divide a parameter; weights are (out features, in features)."""

    VOCABULARY = "vocabulary"
    """Rows are token ids; the output is a sum over processes."""
    POSITIONS = "positions"
    """Whole; rows are positions, of which each process sees those of its tokens."""
    COLUMN = "column"
    """Rows, the output features, are split, those of a bias too: input whole, output split."""
    ROW = "row"
    """Columns, the input features, are split: input split, output a sum over processes. A bias is
    whole, and added to the sum."""
    HEAD = "head"
    """Rows are token ids; the loss comes together from maxima and sums."""
    NORM = "norm"
    """Whole; with sequence parallelism each process has its own tokens."""
    HEAD_NORM = "head_norm"
    """Whole; each process has its own attention heads."""
    JOINT_HEAD_NORM = "joint_head_norm"
    """Over all heads: not to be divided."""
    ROUTER = "router"
    """Whole; each process sees all tokens, and a part of what their experts give."""
    EXPERT_COLUMN = "expert_column"
    """(experts, out features, in features): experts are divided over the expert axis, output
    features over the tensor axis."""
    EXPERT_ROW = "expert_row"
    """Likewise, with input features over the tensor axis."""
    FACTOR = "factor"
    """Whole: the factor of an adapter that lies on the side of a layer's weight which isn't split.
    Each process has its part of what comes out of it, or goes in."""
    BALANCE = "balance"
    """A router's state that isn't trained; whole."""


EXPERTS = frozenset((Role.EXPERT_COLUMN, Role.EXPERT_ROW))
"""Roles of the weights that all of a layer's experts have in one tensor."""
MULTIPLIED = EXPERTS | {*(Role.COLUMN, Role.ROW, Role.HEAD, Role.ROUTER, Role.FACTOR)}
"""Roles of the weights that are factors of matrix products."""
EMBEDDINGS = frozenset((Role.VOCABULARY, Role.POSITIONS, Role.HEAD))
"""Roles that Kaplan et al. (2020) leave out of a model's size."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the whole model."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int
    """The block that it belongs to; -1 comes before the first, the number of blocks after the
    last."""
    init_std: float = 0.0
    """Initial values are normal around 0; where this and `init_bound` are 0, they are
    `init_value`."""
    init_value: float = 0.0
    init_bound: float = 0.0
    """Where it isn't 0, initial values are spread evenly from minus this to this."""
    is_frozen: bool = False
    """It keeps the values that it begins with: adapters are trained instead."""
    tied_to: str | None = None
    """The parameter that this one is, under a second name."""
    active_share: float = 1.0
    """Of a parameter's tokens, or of experts' parameters: what takes part in a token's products."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_active(self) -> int:
        """Elements that take part in a token's products."""
        return round(self.num_elements * self.active_share)

    @property
    def is_trained(self) -> bool:
        """Whether it has a gradient."""
        return self.is_weight and not self.is_frozen

    @property
    def is_weight(self) -> bool:
        """Whether products or sums read it: it is no state of a router."""
        return self.role is not Role.BALANCE

    @property
    def decays(self) -> bool:
        """Whether weight decay acts on it: on matrices, not on norms and biases."""
        return len(self.shape) > 1

    @property
    def flops_per_token(self) -> int:
        """Of its products in training: 2 for each element, and backward as much for the gradient
        of the input, and for its own."""
        is_factor = self.role in MULTIPLIED and len(self.shape) > 1
        num_products = 2 if self.is_frozen else 3
        return round(2 * num_products * self.num_elements * self.active_share) if is_factor else 0

    @property
    def split_dimension(self) -> int | None:
        """The dimension that tensor-parallel processes divide; None where each holds all."""
        match self.role:
            case Role.VOCABULARY | Role.COLUMN | Role.HEAD:
                return 0
            case Role.ROW:
                return 1 if len(self.shape) > 1 else None
            case Role.EXPERT_COLUMN:
                return 1
            case Role.EXPERT_ROW:
                return 2
            case _:
                return None


@dataclass(frozen=True)
class Width:
    """A number of features that tensor-parallel processes divide in whole units."""

    fields: tuple[str, ...]
    """The fields of the model's config that it is the product of; the first counts the units."""
    num_units: int
    num_features: int


@dataclass(frozen=True)
class Description:
    """A model as data."""

    architecture: Architecture
    table: tuple[Parameter, ...]
    """In the model's order; a tied head is listed too."""

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """By name, in the model's order; a tied parameter once."""
        return {p.name: p for p in self.table if p.tied_to is None}

    @cached_property
    def weights(self) -> Mapping[str, Parameter]:
        """Without the state of routers, likewise."""
        return {name: p for name, p in self.parameters.items() if p.is_weight}

    @cached_property
    def trained(self) -> Mapping[str, Parameter]:
        """Those that have gradients, likewise."""
        return {name: p for name, p in self.parameters.items() if p.is_trained}

    @cached_property
    def by_name(self) -> Mapping[str, Parameter]:
        """The table by name: a tied head too, which is a parameter of its own on a pipeline's last
        stage."""
        return {p.name: p for p in self.table}

    @cached_property
    def _weights(self) -> Mapping[str, Parameter]:
        return {p.name.removesuffix(".weight"): p for p in self.table if p.name.endswith(".weight")}

    @cached_property
    def _readers(self) -> frozenset[str]:
        columns = (name for name, p in self._weights.items() if p.role is Role.COLUMN)
        return frozenset(name.rpartition(".")[0] for name in columns)

    def role_of_module(self, name: str) -> Role | None:
        """The role of a module's weight; None for modules that only hold others."""
        weight = self._weights.get(name)
        return None if weight is None else weight.role

    def takes_whole_sequence(self, module_name: str) -> bool:
        """Whether a module's input must hold all tokens: where sequence parallelism gathers them,
        once for all column-split layers within."""
        return module_name in self._readers

    def layer_flops_per_token(self, seq_len: int) -> list[int]:
        """What training one token costs in each layer; see `counts.flops_per_token`."""
        costs = [each.attention.flops_per_token(seq_len) for each in self.architecture.layers]
        for parameter in self.table:
            if 0 <= parameter.layer < len(costs):
                costs[parameter.layer] += parameter.flops_per_token
        return costs

    def head_flops_per_token(self) -> int:
        """What training one token costs after the last layer."""
        end = len(self.architecture.layers)
        return sum(p.flops_per_token for p in self.table if p.layer == end)

    def widths(self) -> Iterator[Width]:
        """The numbers of features within the layers, each once."""
        yield from dict.fromkeys(
            width for layer in self.architecture.layers for width in _widths(layer)
        )


@lru_cache(maxsize=16)
def describe(config: ModelConfig) -> Description:
    """The table of the model that a config stands for."""
    architecture = config.architecture()
    table = _table(architecture)
    if config.lora is not None:
        table = _with_adapters(table, config.lora)
    return Description(architecture, tuple(table))


def _widths(layer: Layer) -> Iterable[Width]:
    attention, mlp = layer.attention, layer.feed_forward
    for field, num in (
        ("num_heads", attention.num_heads),
        ("num_kv_heads", attention.num_query_groups),
    ):
        yield Width((field, "head_dim"), num, num * attention.head_dim)
    field = "experts.ffn_hidden_size" if isinstance(mlp, Experts) else "ffn_hidden_size"
    yield Width((field,), mlp.hidden_size, mlp.hidden_size)


def _table(model: Architecture) -> Iterator[Parameter]:
    vocabulary = (model.vocab_size, model.hidden_size)
    std, end = model.init_std, len(model.layers)
    yield Parameter("embedding.weight", vocabulary, Role.VOCABULARY, -1, std)
    if model.num_positions is not None:
        positions = (model.num_positions, model.hidden_size)
        yield Parameter("positions.weight", positions, Role.POSITIONS, -1, std)
    for number, layer in enumerate(model.layers):
        prefix = f"blocks.{number}"
        block = _Block(number, model.hidden_size, std, std / math.sqrt(2 * end))
        yield from block.norm(f"{prefix}.attention_norm", layer.norm)
        yield from block.attention(f"{prefix}.attention", layer.attention)
        yield from block.norm(f"{prefix}.mlp_norm", layer.norm)
        if isinstance(layer.feed_forward, Experts):
            yield from block.experts(f"{prefix}.mlp", layer.feed_forward)
        else:
            yield from block.feed_forward(f"{prefix}.mlp", layer.feed_forward)
    yield from _Block(end, model.hidden_size, std, std).norm("norm", model.norm)
    tied_to = "embedding.weight" if model.tie_embeddings else None
    yield Parameter("head.weight", vocabulary, Role.HEAD, end, std, tied_to=tied_to)


def _with_adapters(table: Iterable[Parameter], lora: LoraConfig) -> Iterator[Parameter]:
    """The rows, frozen, and behind those of each layer that is a target its factors."""
    for module, group in itertools.groupby(table, key=lambda row: row.name.rpartition(".")[0]):
        rows = [replace(row, is_frozen=True) for row in group]
        yield from rows
        if target_of(module) in lora.targets:
            yield from _factors(module, rows[0], lora.rank)


def _factors(module: str, weight: Parameter, rank: int) -> Iterator[Parameter]:
    """A evenly within 1 / sqrt(in features), as PEFT has it, and B zero; what lies on the side of
    the weight that is split is split like it."""
    num_out, num_in = weight.shape
    whole, is_column = Role.FACTOR, weight.role is Role.COLUMN
    roles = (whole, weight.role) if is_column else (weight.role, whole)
    (first, second), number = FACTORS, weight.layer
    yield Parameter(f"{module}.{first}", (rank, num_in), roles[0], number, init_bound=num_in**-0.5)
    yield Parameter(f"{module}.{second}", (num_out, rank), roles[1], number)


@dataclass(frozen=True)
class _Block:
    """Makes the rows of one block's parts."""

    number: int
    width: int
    std: float
    residual_std: float
    """Of what writes to the residual stream."""

    def norm(
        self, name: str, norm: Norm, size: int | None = None, role: Role = Role.NORM
    ) -> Iterator[Parameter]:
        shape = (self.width if size is None else size,)
        yield Parameter(f"{name}.weight", shape, role, self.number, init_value=1.0)
        if norm.has_bias:
            yield Parameter(f"{name}.bias", shape, role, self.number)

    def linear(
        self, name: str, shape: tuple[int, int], role: Role, *, has_bias: bool
    ) -> Iterator[Parameter]:
        std = self.residual_std if role is Role.ROW else self.std
        yield Parameter(f"{name}.weight", shape, role, self.number, std)
        if has_bias:
            yield Parameter(f"{name}.bias", shape[:1], role, self.number)

    def attention(self, name: str, layer: Attention) -> Iterator[Parameter]:
        queries = layer.num_heads * layer.head_dim
        keys = layer.num_query_groups * layer.head_dim
        for part, size in (("query", queries), ("key", keys), ("value", keys)):
            shape = (size, self.width)
            yield from self.linear(f"{name}.{part}", shape, Role.COLUMN, has_bias=layer.has_bias)
        shape = (self.width, queries)
        yield from self.linear(f"{name}.output", shape, Role.ROW, has_bias=layer.has_bias)
        if layer.qk_norm is not None:
            is_joint = layer.norms_heads_jointly
            role = Role.JOINT_HEAD_NORM if is_joint else Role.HEAD_NORM
            for part, size in (("query_norm", queries), ("key_norm", keys)):
                size = size if is_joint else layer.head_dim
                yield from self.norm(f"{name}.{part}", layer.qk_norm, size, role)

    def feed_forward(self, name: str, layer: FeedForward) -> Iterator[Parameter]:
        is_gated = layer.kind is FeedForwardKind.SWIGLU
        for part in ("gate", "up") if is_gated else ("up",):
            shape = (layer.hidden_size, self.width)
            yield from self.linear(f"{name}.{part}", shape, Role.COLUMN, has_bias=layer.has_bias)
        shape = (self.width, layer.hidden_size)
        yield from self.linear(f"{name}.down", shape, Role.ROW, has_bias=layer.has_bias)

    def experts(self, name: str, layer: Experts) -> Iterator[Parameter]:
        count, hidden = layer.num_experts, layer.hidden_size
        router = layer.router
        yield Parameter(
            f"{name}.router.weight", (count, self.width), Role.ROUTER, self.number, self.std
        )
        if router.bias_rate:
            yield Parameter(f"{name}.router.bias", (count,), Role.BALANCE, self.number)
        if router.batch_loss:
            yield Parameter(
                f"{name}.router.load", (count,), Role.BALANCE, self.number, init_value=1.0
            )
        for part, shape, role, std in (
            ("gate", (count, hidden, self.width), Role.EXPERT_COLUMN, self.std),
            ("up", (count, hidden, self.width), Role.EXPERT_COLUMN, self.std),
            ("down", (count, self.width, hidden), Role.EXPERT_ROW, self.residual_std),
        ):
            share = router.top_k / count
            yield Parameter(
                f"{name}.experts.{part}", shape, role, self.number, std, active_share=share
            )
        if layer.shared_hidden_size:
            shared = FeedForward(FeedForwardKind.SWIGLU, layer.shared_hidden_size)
            yield from self.feed_forward(f"{name}.shared", shared)
