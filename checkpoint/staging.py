"""A copy of this process's part of the tensors in CPU memory, so that training can go on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from triax.parallel.flat_shards import FlatShard


@dataclass(frozen=True)
class Shard:
    """A rectangle of one tensor."""

    data: torch.Tensor
    """On the CPU, contiguous."""
    offsets: torch.Size
    """Where `data` begins in the whole tensor, per dimension."""
    size: torch.Size
    """The whole tensor's shape."""


def whole(data: torch.Tensor) -> list[Shard]:
    """A tensor that one process holds in full."""
    return [Shard(data, torch.Size([0] * data.dim()), data.shape)]


class Slabs:
    """Divides a few large allocations, each of 2^n bytes, among many buffers.

    torch rounds every pinned allocation up to a power of two: with one for each buffer, some models
    would pin 40% more memory than their state has.

    Args:
        allocate: makes an uninitialised tensor of so many bytes, uint8.
    """

    _ALIGNMENT, _LEAST, _MOST = 1 << 8, 1 << 20, 1 << 30

    def __init__(self, allocate: Callable[[int], torch.Tensor]) -> None:
        self._allocate = allocate
        self._rests: list[torch.Tensor] = []
        self._num_bytes = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """So many bytes that nobody else has, uint8; they live as long as the result."""
        size = -(-num_bytes // self._ALIGNMENT) * self._ALIGNMENT
        place = next((i for i, rest in enumerate(self._rests) if rest.numel() >= size), None)
        if place is None:
            place = len(self._rests)
            self._rests.append(self._allocate(self._slab_size(size)))
            self._num_bytes += self._rests[place].numel()
        rest = self._rests[place]
        self._rests[place] = rest[size:]
        # By way of NumPy its storage ends where it does; torch's writer would copy others first.
        return torch.from_numpy(rest[:num_bytes].numpy())

    def _slab_size(self, size: int) -> int:
        """Enough for the buffer, else growing with what there is, lest much be left over."""
        growth = min(max(self._num_bytes // 4, self._LEAST), self._MOST)
        return 1 << max((size - 1).bit_length(), growth.bit_length() - 1)


class Stager:
    """Copies tensors into CPU buffers that are kept from one save to the next.

    Buffers for CUDA tensors are pinned, so that all copies run at once and are waited for once.

    Args:
        folder: on a local drive, for state that memory has no room for: the buffers of CPU tensors
            are unnamed files there, mapped.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._pinned = Slabs(lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True))
        self._folder = folder

    @torch.no_grad()
    def stage(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Shard]]:
        """Copy plain tensors, DTensors (not partial sums) and flat shards, on any device.

        The shards are what this process holds of each tensor, valid until the next call.
        """
        shards = {name: self._stage_one(name, tensor) for name, tensor in tensors.items()}
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return shards

    def _stage_one(self, name: str, tensor: torch.Tensor) -> list[Shard]:
        if isinstance(tensor, FlatShard):
            return [
                Shard(self._copy(f"{name}/{n}", values), torch.Size(offset), tensor.shape)
                for n, (offset, values) in enumerate(tensor.rectangles)
            ]
        if not isinstance(tensor, DTensor):
            return whole(self._copy(name, tensor))
        data = self._copy(name, tensor.to_local())
        # The protocol by which torch's own planner asks a DTensor for its place.
        (chunk,) = tensor.__create_chunk_list__()
        assert chunk.sizes == data.shape, (name, chunk, data.shape)
        return [Shard(data, chunk.offsets, tensor.shape)]

    def _copy(self, name: str, source: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            buffer = self._buffers[name] = self._empty_like(source)
        return buffer.copy_(source, non_blocking=True)

    def _empty_like(self, source: torch.Tensor) -> torch.Tensor:
        if source.is_cuda and source.numel() > 0:
            return self._pinned.take(source.nbytes).view(source.dtype).view(source.shape)
        if self._folder is None or source.numel() <= 1:
            return torch.empty(source.shape, dtype=source.dtype)
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            return torch.from_file(
                file.name, shared=True, size=source.numel(), dtype=source.dtype
            ).view(source.shape)
