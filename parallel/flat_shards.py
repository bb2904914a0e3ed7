"""A tensor of which this process holds a contiguous range of its elements.

ZeRO, as DeepSpeed does it, divides a matrix where it happens to end, within a row too. Such a
range is at most three rectangles: the rest of a row, whole rows, the beginning of a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Block:
    """A rectangle of a tensor: what one process has of it before ZeRO divides that."""

    offset: tuple[int, ...]
    """Where it begins in the whole tensor, one number a dimension."""
    shape: tuple[int, ...]
    whole_shape: tuple[int, ...]


class Rectangle(NamedTuple):
    """A rectangle of a tensor that this process holds."""

    offset: tuple[int, ...]
    """Where it begins in the whole tensor."""
    values: Tensor
    """A view of the live elements."""


class FlatShard(Tensor):
    """Stands for a whole tensor, and holds this process's rectangles of it.

    It has the whole tensor's shape and dtype and no arithmetic. Checkpoints take it as they take
    DTensors: torch's planner asks it for its rectangles, and loading writes into them.

    Args:
        elements: 1-D; the range, in the order of the block's rows.
        first: where the range begins in the flattened block.
        block: the rectangle that the range is of, 1-D or 2-D.
    """

    rectangles: tuple[Rectangle, ...]

    @staticmethod
    def __new__(cls, elements: Tensor, first: int, block: Block) -> FlatShard:
        self: FlatShard = torch.Tensor._make_wrapper_subclass(
            cls, block.whole_shape, dtype=elements.dtype, device=elements.device
        )
        self.rectangles = tuple(_rectangles(elements, first, block))
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func}: a flat shard is only for saving and loading")

    def __repr__(self, **_options: Any) -> str:  # type: ignore[override]
        return f"FlatShard({tuple(self.shape)}, {[tuple(p.values.shape) for p in self.rectangles]})"

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(torch.Size(rectangle.offset), rectangle.values.shape)
            for rectangle in self.rectangles
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return next(p.values for p in self.rectangles if p.offset == tuple(index.offset))


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a plain tensor or a DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_parts(tensor: Tensor) -> list[Tensor]:
    """The live elements that this process holds of a plain tensor, a DTensor or a flat shard."""
    if isinstance(tensor, FlatShard):
        return [rectangle.values for rectangle in tensor.rectangles]
    return [local_tensor(tensor)]


def _rectangles(elements: Tensor, first: int, block: Block) -> Sequence[Rectangle]:
    """Views of the elements, as rectangles with their places in the whole tensor."""
    if elements.numel() == 0:
        return []
    if len(block.shape) == 1:
        return [Rectangle((block.offset[0] + first,), elements)]
    num_columns = block.shape[1]
    last = first + elements.numel()
    # Where whole rows begin and end; a range without a whole row may have neither within.
    begin, end = -(-first // num_columns) * num_columns, last // num_columns * num_columns
    cuts = sorted({first, min(begin, last), max(end, first), last})
    rectangles = []
    for start, stop in itertools.pairwise(cuts):
        row, column = divmod(start, num_columns)
        num_rows = max(1, (stop - start) // num_columns)
        values = elements[start - first : stop - first].view(num_rows, -1)
        rectangles.append(Rectangle((block.offset[0] + row, block.offset[1] + column), values))
    return rectangles
