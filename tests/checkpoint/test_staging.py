"""The copies that a save makes first, in memory and on a drive."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.checkpoint.staging import Slabs, Stager


@pytest.mark.parametrize(
    ("device", "on_drive"),
    [("cpu", False), ("cpu", True), pytest.param("cuda", False, marks=pytest.mark.gpu)],
)
def test_a_copy_is_of_the_moment(tmp_path: Path, device: str, on_drive: bool) -> None:
    """Also of what is staged again, into the same buffers; and a drive shows no files for them."""
    stager = Stager(tmp_path if on_drive else None)
    tensors = {
        "matrix": torch.rand(3, 5, device=device),
        "step": torch.tensor(7.0, device=device),
        "low": torch.rand(6, device=device).bfloat16(),
        "empty": torch.empty(0, device=device),
    }
    for _ in range(2):
        expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        staged = stager.stage(tensors)
        for tensor in tensors.values():
            tensor += 1
        for name, [shard] in staged.items():
            assert shard.data.dtype == expected[name].dtype
            assert torch.equal(shard.data, expected[name])
    assert list(tmp_path.iterdir()) == []


def test_a_drive_holds_what_is_staged_on_it(tmp_path: Path) -> None:
    [shard] = Stager(tmp_path).stage({"w": torch.ones(4096)})["w"]
    maps = Path("/proc/self/maps").read_text().splitlines()
    address = shard.data.data_ptr()
    ranges = (line.split(maxsplit=5) for line in maps)
    held = [
        parts[-1]
        for parts in ranges
        if int(parts[0].split("-")[0], 16) <= address < int(parts[0].split("-")[1], 16)
    ]
    assert len(held) == 1 and held[0].startswith(str(tmp_path))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 1 << 21), max_size=40))
def test_no_two_buffers_share_a_byte_of_a_slab(sizes: list[int]) -> None:
    allocated: list[torch.Tensor] = []

    def allocate(num_bytes: int) -> torch.Tensor:
        allocated.append(torch.empty(num_bytes, dtype=torch.uint8))
        return allocated[-1]

    slabs = Slabs(allocate)
    taken = [slabs.take(size) for size in sizes]
    assert [buffer.untyped_storage().nbytes() for buffer in taken] == sizes
    starts = {slab.data_ptr(): slab for slab in allocated}
    places = sorted((buffer.data_ptr(), buffer.numel()) for buffer in taken if buffer.numel())
    for (begin, size), (next_begin, _) in itertools.pairwise(places):
        assert begin + size <= next_begin
    for begin, size in places:
        base = max(start for start in starts if start <= begin)
        assert begin + size <= base + starts[base].numel()
        assert (begin - base) % 256 == 0  # any dtype's view of it is aligned
    assert all(slab.numel().bit_count() == 1 for slab in allocated)


def test_slabs_are_little_larger_than_what_is_in_them() -> None:
    """Where a buffer of its own, rounded up to a power of two, would waste a third or more."""
    num_allocated = 0

    def allocate(num_bytes: int) -> torch.Tensor:
        nonlocal num_allocated
        num_allocated += num_bytes
        return torch.empty(num_bytes, dtype=torch.uint8)

    slabs, num_taken = Slabs(allocate), 0
    for size in [3 << 16, 12, 3 << 18, 5 << 16] * 30:
        num_taken += slabs.take(size).numel()
        assert num_allocated < 1.35 * num_taken + (2 << 20)
