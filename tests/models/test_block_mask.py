"""The mask in blocks says what the dense mask says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triax.models.layers.attention import attend
from triax.models.layers.masks import BLOCK_TOKENS, attention_mask, block_mask

CPU = torch.device("cpu")
DOCUMENTS = ("none", "rising", "any")


def document_ids(kind: str, num_tokens: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(num_tokens)
    if kind == "none":
        return None
    if kind == "rising":
        return (torch.rand(2, num_tokens, generator=generator) < 0.02).cumsum(1).int()
    return torch.randint(0, 3, (2, num_tokens), generator=generator).int()


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("window", [None, 7, 130, 300])
@pytest.mark.parametrize("num_tokens", [16, 128, 200, 512])
def test_blocks_leave_out_nothing_that_is_seen(
    documents: str, window: int | None, num_tokens: int
) -> None:
    ids = document_ids(documents, num_tokens)
    dense = attention_mask(ids, num_tokens, window, CPU)
    blocks = block_mask(ids, num_tokens, window, CPU)
    if dense is None:
        assert blocks is None
        return
    assert blocks is not None
    count = -(-num_tokens // BLOCK_TOKENS)
    places = torch.arange(num_tokens) // BLOCK_TOKENS
    for row in range(dense.shape[0]):
        for q in range(count):
            partial = listed(blocks.kv_num_blocks, blocks.kv_indices, row, q)
            full = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices, row, q)
            assert not partial & full
            for s in range(count):
                tile = dense[row, 0][places == q][:, places == s]
                assert tile.all() if s in full else (s in partial or not tile.any()), (row, q, s)


def listed(counts: Tensor | None, numbers: Tensor | None, row: int, q: int) -> set[int]:
    assert counts is not None and numbers is not None
    return set(numbers[row, 0, q, : int(counts[row, 0, q])].tolist())


def test_most_blocks_of_short_documents_are_left_out() -> None:
    ids = torch.arange(2048)[None] // 128
    blocks = block_mask(ids, 2048, None, CPU)
    assert blocks is not None
    assert int(blocks.kv_num_blocks.sum()) == 16
    assert blocks.full_kv_num_blocks is not None and int(blocks.full_kv_num_blocks.sum()) == 0


@pytest.mark.filterwarnings("ignore:.*without torch.compile")
@pytest.mark.parametrize("documents", DOCUMENTS)
def test_attention_is_that_of_the_dense_mask(documents: str) -> None:
    num_tokens, generator = 200, torch.Generator().manual_seed(5)
    ids = document_ids(documents, num_tokens)
    q, k, v = (
        torch.randn(2, heads, num_tokens, 16, dtype=torch.float64, generator=generator)
        for heads in (4, 2, 2)
    )
    expected = attend(q, k, v, attention_mask(ids, num_tokens, 50, CPU))
    found = attend(q, k, v, block_mask(ids, num_tokens, 50, CPU))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*without torch.compile")
def test_masks_of_other_batches_compile_nothing_anew() -> None:
    def masked(q: Tensor, ids: Tensor) -> Tensor:
        return inner(q, block_mask(ids, 16, None, CPU))

    inner = torch.compile(lambda q, mask: attend(q, q, q, mask), backend="aot_eager")
    q = torch.randn(2, 2, 16, 16)
    masked(q, torch.arange(16).expand(2, 16) // 5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        ids = torch.arange(16).expand(2, 16) // 3
        torch.testing.assert_close(
            masked(q, ids), attend(q, q, q, attention_mask(ids, 16, None, CPU))
        )
