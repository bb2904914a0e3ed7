"""Layout arithmetic and its picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.picture import draw_mesh, tensor_crosses_nodes


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3)
)
def test_every_sample_share_is_read_by_whole_model_replicas(
    pipeline: int, tensor: int, replicate: int, shard: int, zero_stage: int
) -> None:
    world_size = pipeline * tensor * replicate * shard
    config = ParallelConfig.model_validate(
        {"pipeline": pipeline, "tensor": tensor, "replicate": replicate, "zero_stage": zero_stage}
    )
    layout = Layout.of(config, world_size)
    assert layout.data_parallel == replicate * shard
    assert (layout.shard == 1) if zero_stage == 0 else (layout.shard == shard)
    readers = [layout.data_rank(rank) for rank in range(world_size)]
    assert {readers.count(share) for share in range(layout.data_parallel)} == {pipeline * tensor}
    # Neighbours on the tensor axis are neighbouring processes.
    assert all(readers[rank] == readers[rank - rank % tensor] for rank in range(world_size))


@pytest.mark.parametrize(
    ("parallel", "world_size", "named"),
    [({"tensor": 3}, 4, "parallel.tensor"), ({"pipeline": 8}, 4, "parallel.pipeline"),
     ({"replicate": 3}, 4, "parallel.replicate")],
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
