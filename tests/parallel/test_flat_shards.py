"""Ranges of a flattened matrix as rectangles of the whole one."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.parallel.flat_shards import Block, FlatShard, local_parts


@st.composite
def divisions(draw: st.DrawFn) -> tuple[Block, list[int]]:
    """A rectangle of a matrix, and where it is cut into ranges."""
    num_rows, num_columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    above, left = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    whole = (num_rows + above + draw(st.integers(0, 3)), num_columns + left)
    size = num_rows * num_columns
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=5)))
    return Block((above, left), (num_rows, num_columns), whole), [0, *cuts, size]


@settings(deadline=None)
@given(divisions())
def test_all_ranges_together_are_the_rectangle(division: tuple[Block, list[int]]) -> None:
    block, cuts = division
    (above, left), (num_rows, num_columns) = block.offset, block.shape
    elements = torch.arange(num_rows * num_columns)
    found = torch.full(block.whole_shape, -1)
    for start, stop in itertools.pairwise(cuts):
        shard = FlatShard(elements[start:stop], start, block)
        assert shard.shape == block.whole_shape and shard.dtype == elements.dtype
        assert len(shard.rectangles) <= 3
        for (row, column), values in shard.rectangles:
            place = found[row : row + values.shape[0], column : column + values.shape[1]]
            assert (place == -1).all()
            place.copy_(values)
    expected = torch.full(block.whole_shape, -1)
    expected[above : above + num_rows, left : left + num_columns] = elements.view(block.shape)
    assert torch.equal(found, expected)


def test_pieces_are_views_and_nothing_else_can_be_done_with_them() -> None:
    elements = torch.zeros(5)
    shard = FlatShard(elements, 2, Block((4,), (9,), (20,)))
    [values] = local_parts(shard)
    values += 1
    assert elements.tolist() == [1.0] * 5
    assert shard.rectangles[0].offset == (6,)
    with pytest.raises(NotImplementedError, match="saving and loading"):
        shard + 1
