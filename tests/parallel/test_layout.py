"""Layout arithmetic and its picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import AXES, Layout
from triax.parallel.picture import draw_mesh, tensor_crosses_nodes


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3),
    st.integers(1, 4),
)  # fmt: skip
def test_every_sample_share_is_read_by_whole_model_replicas(
    pipeline: int, tensor: int, replicate: int, shard: int, zero_stage: int, context: int
) -> None:
    world_size = pipeline * tensor * replicate * shard * context
    config = ParallelConfig.model_validate(
        {"pipeline": pipeline, "tensor": tensor, "replicate": replicate, "zero_stage": zero_stage,
         "context": context}
    )  # fmt: skip
    layout = Layout.of(config, world_size)
    assert layout.data_parallel == replicate * shard
    assert (layout.shard == 1) if zero_stage == 0 else (layout.shard == shard)
    readers = [layout.data_rank(rank) for rank in range(world_size)]
    num_readers = pipeline * context * tensor
    assert {readers.count(share) for share in range(layout.data_parallel)} == {num_readers}
    assert layout.num_parts == pipeline * layout.shard * context * tensor
    # Neighbours on the tensor axis are neighbouring processes.
    assert all(readers[rank] == readers[rank - rank % tensor] for rank in range(world_size))


@given(st.lists(st.integers(1, 3), min_size=5, max_size=5), st.sets(st.sampled_from(AXES)))
def test_groups_part_the_ranks_by_their_coordinates(sizes: list[int], axes: set[str]) -> None:
    layout = Layout(*sizes)
    groups = layout.groups(*axes)
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))
    assert {len(group) for group in groups} == {math.prod(getattr(layout, axis) for axis in axes)}
    for group in groups:
        shared = [
            {axis: at for axis, at in layout.coordinates(rank).items() if axis not in axes}
            for rank in group
        ]
        assert shared.count(shared[0]) == len(group)
    # As torch's mesh numbers them.
    ranks = np.arange(layout.world_size).reshape(sizes)
    for rank in range(layout.world_size):
        at = layout.coordinates(rank)
        assert ranks[tuple(at[axis] for axis in AXES)] == rank


def test_processes_that_make_no_whole_copies_of_the_model() -> None:
    config = ParallelConfig(tensor=2, pipeline=3, replicate=2)
    assert Layout.unit_of(config) == 12
    found = [Layout.data_parallel_of(config, size) for size in (None, 6, 7, 12, 18)]
    assert found == [None, 1, None, 2, 3]
    assert Layout.of(config, 24).num_micro_batches(32, 4) == 2


@pytest.mark.parametrize(
    ("parallel", "world_size", "named"),
    [({"tensor": 3}, 4, "parallel.tensor"), ({"pipeline": 8}, 4, "parallel.pipeline"),
     ({"replicate": 3}, 4, "parallel.replicate"), ({"context": 3}, 4, "parallel.context 3")],
)  # fmt: skip
def test_a_layout_that_does_not_fit(parallel: dict[str, int], world_size: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Layout.of(ParallelConfig.model_validate(parallel), world_size)


def test_the_picture() -> None:
    layout = Layout(pipeline=2, replicate=1, shard=2, context=1, tensor=2)
    assert draw_mesh(layout, processes_per_node=4).splitlines() == [
        "pipeline 0   [0 1]n0 [2 3]n0",
        "pipeline 1   [4 5]n1 [6 7]n1",
        "2 data-parallel ranks a row; [ranks of a tensor group]n<node>",
    ]
    assert draw_mesh(layout, processes_per_node=4, expert=2).splitlines()[-1] == (
        "expert: each 2 neighbours with other tokens divide a layer's experts"
    )


def test_the_picture_of_sequences_that_are_shared() -> None:
    layout = Layout(pipeline=1, replicate=1, shard=2, context=2, tensor=2)
    assert draw_mesh(layout, processes_per_node=4).splitlines() == [
        "pipeline 0   [0 1 2 3]n0 [4 5 6 7]n1",
        "2 data-parallel ranks a row; [ranks that share sequences]n<node>",
    ]


@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 20), st.integers(1, 16))
def test_the_picture_fits_the_terminal(
    pipeline: int, shard: int, tensor: int, per_node: int
) -> None:
    picture = draw_mesh(Layout(pipeline, 1, shard, 1, min(tensor, 8)), per_node)
    assert max(len(line) for line in picture.splitlines()) <= 80


def test_tensor_groups_that_cross_nodes() -> None:
    assert not tensor_crosses_nodes(Layout(1, 1, 4, 1, 4), 8)
    assert tensor_crosses_nodes(Layout(1, 1, 1, 1, 16), 8)
    assert tensor_crosses_nodes(Layout(1, 1, 4, 1, 3), 8)
    assert not tensor_crosses_nodes(Layout(1, 1, 2, 1, 3), 8)
