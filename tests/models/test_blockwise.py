"""Attention tile by tile is attention with the dense mask, and leaves out what nobody sees."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from documents import PATTERNS, document_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triax.models.layers import blockwise
from triax.models.layers.attention import attend
from triax.models.layers.blockwise import Sight, attend_tiles, nothing_attended
from triax.models.layers.masks import attention_mask, document_starts, reach

CPU = torch.device("cpu")


def inputs(num_tokens: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, heads, num_tokens, 8, generator=generator) for heads in (4, 2, 2))
    return q, k, v


def rows(pattern: str, num_tokens: int, seed: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    both = [document_ids(pattern, num_tokens, generator) for _ in range(2)]
    return None if both[0] is None else torch.stack([x for x in both if x is not None])


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(PATTERNS), st.integers(9, 70), st.none() | st.integers(1, 80),
    st.integers(0, 99),
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_dense_mask(
    pattern: str, num_tokens: int, window: int | None, seed: int
) -> None:
    ids = rows(pattern, num_tokens, seed)
    grad = torch.randn(2, 4, num_tokens, 8)
    found = []
    with mock.patch.object(blockwise, "TILE_TOKENS", 16):
        for make_mask in (attention_mask, reach):
            q, k, v = (x.requires_grad_() for x in inputs(num_tokens, seed))
            mixed = attend(q, k, v, make_mask(ids, num_tokens, window, CPU))
            mixed.backward(grad)
            found.append([mixed.detach(), q.grad, k.grad, v.grad])
    for ours, expected in zip(found[1], found[0], strict=True):
        assert ours is not None and expected is not None
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_keys_may_come_in_parts_and_in_any_order() -> None:
    num_tokens = 48
    q, k, v = inputs(num_tokens, 1)
    ids = rows("random", num_tokens, 1)
    assert ids is not None
    places = (range(num_tokens),)
    attended = nothing_attended(q)
    for start in (32, 0, 16):
        part = slice(start, start + 16)
        sight = Sight(places, (range(start, start + 16),), document_starts(ids), 20)
        attend_tiles(q, k[:, :, part], v[:, :, part], sight, attended)
    expected = attend(q, k, v, attention_mask(ids, num_tokens, 20, CPU))
    torch.testing.assert_close(attended.mixed_BHTK, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "window", "num_tiles"), [("none", 65, 7), ("one", None, 10), ("borders", None, 4)]
)
def test_tiles_where_nothing_is_visible_are_left_out(
    pattern: str, window: int | None, num_tiles: int
) -> None:
    """Of 16 tiles 10 aren't all in the future."""
    q, k, v = inputs(256, 2)
    with (
        mock.patch.object(blockwise, "TILE_TOKENS", 64),
        mock.patch.object(blockwise, "_scores", wraps=blockwise._scores) as scores,
    ):
        attend(q, k, v, reach(rows(pattern, 256, 2), 256, window, CPU))
    assert scores.call_count == num_tiles


def test_documents_begin_where_their_ids_change() -> None:
    ids = torch.tensor([[7, 7, 3, 3, 3, 9], [0, 0, 0, 0, 0, 0]])
    assert document_starts(ids).tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]


def test_no_mask_grows_with_the_square_of_a_long_row() -> None:
    """At 131,072 tokens: a number a token, and a tile's mask at a time."""
    num_tokens = 131_072
    generator = torch.Generator().manual_seed(3)
    ids = (torch.rand(1, num_tokens, generator=generator) < 1e-3).cumsum(1)
    found = reach(ids, num_tokens, None, CPU)
    assert found is not None and found.firsts_BT is not None
    assert found.firsts_BT.nbytes == 8 * num_tokens
    places = (range(num_tokens),)
    tiles = blockwise._tiles(Sight(places, places, found.firsts_BT, None), CPU)
    sizes = [0 if tile.hidden_BTS is None else tile.hidden_BTS.nbytes for tile in tiles]
    assert max(sizes) == blockwise.TILE_TOKENS**2
    assert len(sizes) < 8 * num_tokens / blockwise.TILE_TOKENS
