"""How many elements of the weights a process holds, by pipeline stage. Imports no torch.

Tensor parallelism divides the dimension that a parameter's role names; ZeRO then the rows of what
is left, the first ranks taking one more where they don't divide (`torch.chunk`). Where experts are
divided over processes, ZeRO divides their width, evenly (`parallel.zero`).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, Parameter, describe


class Elements(NamedTuple):
    """Of some parameters, on one process."""

    whole: int = 0
    """What tensor parallelism leaves of them."""
    matrices: int = 0
    """Of those, what has more than one dimension."""
    shard: int = 0
    """What ZeRO leaves of all."""
    message: int = 0
    """A rank's part of a message that gathers all: rows rounded up, equal on all ranks."""
    expert_message: int = 0
    """Likewise, of experts that are divided over processes: they have messages of their own."""
    num_parameters: int = 0


class Spread(NamedTuple):
    """Over how many processes a stage's weights are divided, and which of them this is."""

    tensor: int = 1
    shard: int = 1
    """Those that ZeRO divides over; 1 at stage 0."""
    expert: int = 1
    """Those that have other experts: neighbours of the shard axis, or at stage 0 replicas."""
    shard_rank: int = 0

    @property
    def expert_shard(self) -> int:
        """Processes over which ZeRO divides the weights of the same experts."""
        return max(1, self.shard // self.expert)


def total(parts: Iterable[Elements]) -> Elements:
    """The sum, field by field."""
    return Elements(*map(sum, zip(*parts, strict=True)))


def local_shape(parameter: Parameter, spread: Spread) -> tuple[int, ...]:
    """What a process holds of a parameter before ZeRO divides it."""
    shape = list(parameter.shape)
    if parameter.split_dimension is not None:
        shape[parameter.split_dimension] //= spread.tensor
    if parameter.role in EXPERTS:
        shape[0] //= spread.expert
    return tuple(shape)


def shard_rows(num_rows: int, shard: int, shard_rank: int) -> int:
    """How many of so many rows a rank of the shard axis holds: `torch.chunk`'s rule."""
    chunk = -(-num_rows // shard)
    return max(0, min(chunk, num_rows - shard_rank * chunk))


def elements_of(parameter: Parameter, spread: Spread) -> Elements:
    """What one process holds of one parameter."""
    rows, *columns = local_shape(parameter, spread)
    width = math.prod(columns)
    whole = rows * width
    matrices = whole if columns else 0
    if spread.expert > 1 and parameter.role in EXPERTS:
        here = whole // spread.expert_shard
        return Elements(whole, matrices, here, expert_message=here, num_parameters=1)
    here = shard_rows(rows, spread.shard, spread.shard_rank) * width
    return Elements(whole, matrices, here, -(-rows // spread.shard) * width, num_parameters=1)


@dataclass(frozen=True)
class Depth:
    """What one process would hold of the model, by depth.

    Attributes:
        layers: of each layer.
        before: sums over the layers before each, and over all at the end.
        embedding: before the first layer: token and learned position embeddings.
        tied_embedding: of those, the one that the head may be tied to.
        norm: after the last layer.
        head: after the norm, whether or not it is tied.
    """

    layers: Sequence[Elements]
    before: Sequence[Elements]
    embedding: Elements
    tied_embedding: Elements
    norm: Elements
    head: Elements

    def of_layers(self, layers: range) -> Elements:
        """The sum over consecutive layers."""
        return Elements(*map(operator.sub, self.before[layers.stop], self.before[layers.start]))


@lru_cache(maxsize=1024)
def depth_of(model: ModelConfig, spread: Spread, *, is_trained: bool = True) -> Depth:
    """What a process at this place would hold of every layer: of the weights that are trained, or
    of those that are frozen beside adapters."""
    num_layers = len(describe(model).architecture.layers)
    layers = [Elements()] * num_layers
    embedding = tied = norm = head = Elements()
    rows = (row for row in describe(model).table if row.is_weight and row.is_frozen != is_trained)
    for parameter in rows:
        here = elements_of(parameter, spread)
        if 0 <= parameter.layer < num_layers:
            layers[parameter.layer] = total((layers[parameter.layer], here))
        elif parameter.layer < 0:
            embedding = total((embedding, here))
            tied = here if parameter.name == "embedding.weight" else tied
        elif parameter.name == "head.weight":
            head = here
        else:
            norm = total((norm, here))
    before = list(itertools.accumulate(layers, lambda a, b: total((a, b)), initial=Elements()))
    return Depth(layers, before, embedding, tied, norm, head)


@dataclass(frozen=True)
class StageElements:
    """What a process holds of one pipeline stage.

    Attributes:
        blocks: its layers.
        largest_block: the layer of most elements.
        rest: embeddings, last norm and head, as far as the stage has them and the optimizer
            updates them.
        follower: a head that is tied to another stage's embedding: it has a weight and a gradient
            here, and the optimizer updates it there.
        used_twice: an embedding that is this stage's head too.
    """

    blocks: Elements
    largest_block: Elements
    rest: Elements
    follower: Elements
    used_twice: Elements

    @cached_property
    def updated(self) -> Elements:
        """What the optimizer updates."""
        return total((self.blocks, self.rest))

    @cached_property
    def all(self) -> Elements:
        """What products read."""
        return total((self.blocks, self.rest, self.follower))


def stage_elements(
    model: ModelConfig,
    depth: Depth,
    layers: range,
    *,
    is_first: bool,
    is_last: bool,
    is_alone: bool,
) -> StageElements:
    """Of the stage of these layers.

    Args:
        is_alone: there is no pipeline, so that a tied head is the embedding.
    """
    rest, follower, used_twice = [Elements()], Elements(), Elements()
    if is_first:
        rest.append(depth.embedding)
    if is_last:
        rest.append(depth.norm)
        if not model.tie_embeddings:
            rest.append(depth.head)
        elif is_alone:
            used_twice = depth.tied_embedding
        else:
            follower = depth.head
    largest = max((depth.layers[number] for number in layers), default=Elements())
    return StageElements(depth.of_layers(layers), largest, total(rest), follower, used_twice)
