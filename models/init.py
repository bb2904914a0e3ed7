"""Initial weights as a pure function of seed, parameter name and element.

Any process can make any slice of any parameter by itself, so every layout starts from the same
weights, and no process ever holds more than its own shard.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from triax.models.description import Description, Parameter

_CHUNK_ELEMENTS = 1 << 20


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; int64 in torch shifts the sign in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) on int64, wrapping."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _uniform(element: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """Two independent fp64 numbers between 0 and 1 for each int64 element number."""
    bits = _mix(_mix(element * _signed(0x9E3779B97F4A7C15) + key))
    scale = 2.0**-32
    return (_shift_right(bits, 32).double() + 0.5) * scale, (bits & 0xFFFFFFFF).double() * scale


def _normal(element: Tensor, key: int) -> Tensor:
    """Standard normal fp32 numbers for int64 element numbers, by Box and Muller (1958)."""
    uniform, turn = _uniform(element, key)
    angle = turn * (2 * math.pi)
    return (torch.sqrt(-2 * torch.log(uniform)) * torch.cos(angle)).float()


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@torch.no_grad()
def initialise(shard: Tensor, parameter: Parameter, offset: Sequence[int], seed: int) -> None:
    """Fill one process's part of a parameter with its initial values.

    Args:
        shard: the part, 1-D to 3-D, floating point, written in place; may be empty.
        parameter: the whole one, which says its distribution.
        offset: where the part begins in the whole parameter, one number a dimension.
        seed: the run's seed.
    """
    if isinstance(shard, FakeTensor):
        return  # it has no elements
    if parameter.init_std == parameter.init_bound == 0:
        shard.fill_(parameter.init_value)
        return
    key, shape = _key(seed, parameter.name), parameter.shape
    # Of experts, a matrix each.
    matrices, outer = (shard, offset[0]) if shard.ndim == 3 else (shard[None], 0)
    for number, matrix in enumerate(matrices, start=outer):
        first = number * shape[-2] * shape[-1]
        _fill(matrix, first, parameter, offset[-2:], key)


def _fill(
    matrix: Tensor, first: int, parameter: Parameter, offset: Sequence[int], key: int
) -> None:
    """Fill a part of a matrix whose elements are numbered from `first` on."""
    width, bound = parameter.shape[-1], parameter.init_bound
    num_rows, num_columns = matrix.shape
    columns = torch.arange(num_columns, device=matrix.device) + (first + offset[1])
    rows_per_chunk = max(1, _CHUNK_ELEMENTS // max(1, num_columns))
    for start in range(0, num_rows, rows_per_chunk):
        stop = min(start + rows_per_chunk, num_rows)
        rows = torch.arange(start, stop, device=matrix.device) + offset[0]
        elements = rows[:, None] * width + columns
        if bound:
            matrix[start:stop] = (2 * _uniform(elements, key)[0] - 1) * bound
        else:
            matrix[start:stop] = _normal(elements, key) * parameter.init_std


@torch.no_grad()
def initialise_model(model: nn.Module, description: Description, seed: int) -> None:
    """Fill a whole model on one device, what isn't trained too."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in description.parameters:
            initialise(tensor, description.parameters[name], [0] * tensor.ndim, seed)
