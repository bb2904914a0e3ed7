"""The copies that a save makes first, in memory and on a drive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triax.checkpoint.staging import Stager


@pytest.mark.parametrize("on_drive", [False, True], ids=["memory", "drive"])
def test_a_copy_is_of_the_moment(tmp_path: Path, on_drive: bool) -> None:
    """Also of what is staged again, into the same buffers; and a drive shows no files for them."""
    stager = Stager(tmp_path if on_drive else None)
    tensors = {
        "matrix": torch.rand(3, 5),
        "step": torch.tensor(7.0),
        "low": torch.rand(6).bfloat16(),
        "empty": torch.empty(0),
    }
    for _ in range(2):
        expected = {name: tensor.clone() for name, tensor in tensors.items()}
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
