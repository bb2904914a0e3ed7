"""What each method of context parallelism sends, and which one `auto` chooses. Imports no torch.

Letters: n tokens of a sequence on one process, c processes that divide it, H query heads, G
key/value heads and K head dimension on one process of the tensor axis, e bytes of an activation,
M key/value heads that Ulysses sends.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

from triax.models.architecture import Architecture, Attention

ContextMethod = Literal["gather", "ring", "ulysses"]
MethodName = Literal["auto", "gather", "ring", "ulysses"]

SUM_BYTES = 4
"""Of a gradient that is summed over processes."""


class SentBytes(NamedTuple):
    """What a process sends for one layer's attention, for each token that it has."""

    forward: Fraction
    backward: Fraction


def sent_bytes(
    method: ContextMethod, layer: Attention, context: int, tensor: int, item_bytes: int
) -> SentBytes:
    """Of n tokens n times as much:

    | method | forward | backward |
    |---|---|---|
    | gather | (c - 1) 2GKe | (c - 1) 2GK (e + 4) |
    | ring | (c - 1) 2GKe | (c - 1) 2GKe + c 2GK 4 |
    | ulysses | (c - 1) / c (2H + 2M) Ke | the same |
    """
    heads, groups = layer.num_heads // tensor, layer.num_query_groups // tensor
    others = context - 1
    keys_values = Fraction(2 * groups * layer.head_dim)
    activations, sums = keys_values * item_bytes, keys_values * SUM_BYTES
    match method:
        case "gather":
            return SentBytes(others * activations, others * (activations + sums))
        case "ring":
            return SentBytes(others * activations, others * activations + context * sums)
        case "ulysses":
            sent = 2 * (heads + num_sent_groups(heads, groups, context)) * layer.head_dim
            each = Fraction(others, context) * sent * item_bytes
            return SentBytes(each, each)


def num_sent_groups(num_heads: int, num_groups: int, size: int) -> int:
    """How many key/value heads Ulysses sends: as there are, or each so often that `size` divides
    them.

    Args:
        num_heads: of queries, a multiple of `size` and of `num_groups`.
    """
    multiples = range(num_groups, num_heads + 1, num_groups)
    return next(n for n in multiples if n % size == 0 and num_heads % n == 0)


def method_of(name: MethodName, model: Architecture, context: int, tensor: int) -> ContextMethod:
    """The method of that name, or for `auto`, by count:

    1. Ulysses, if its heads can be divided: one process's kernels attend;
    2. gathering, while all keys and values aren't larger than four tensors of the queries' size;
    3. the ring, which sends more than gathering and holds less.
    """
    if name != "auto":
        return name
    layers = {layer.attention for layer in model.layers}
    if all(has_whole_shares(layer, context, tensor) for layer in layers):
        return "ulysses"
    is_small = all(context * x.num_query_groups <= 2 * x.num_heads for x in layers)
    return "gather" if is_small else "ring"


def has_whole_shares(layer: Attention, context: int, tensor: int) -> bool:
    """Whether Ulysses can divide a layer's heads."""
    return layer.num_heads % (context * tensor) == 0
