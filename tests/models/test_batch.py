"""The model's input: what is done to all of its tensors alike, and what is counted."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from triax.common.tokens import IGNORE_INDEX
from triax.models.batch import Batch

B, T = 5, 4


def full_batch() -> Batch:
    values = torch.arange(B * T).view(B, T)
    return Batch(values, values + 1, values // 8, values % T, values / 2, values / 3)


def equal(left: Batch, right: Batch) -> bool:
    pairs = zip(left.tensors().values(), right.tensors().values(), strict=True)
    return left.tensors().keys() == right.tensors().keys() and all(
        torch.equal(a, b) for a, b in pairs
    )


def test_every_field_goes_where_the_batch_goes() -> None:
    batch = full_batch()
    assert len(batch.tensors()) == len(fields(Batch))
    moved = batch.to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in moved.tensors().values())
    parts = batch.split(2)
    assert [part.tokens_BT.shape for part in parts] == [(2, T), (2, T), (1, T)]
    assert equal(Batch.cat(parts), batch)
    bare = Batch(batch.tokens_BT, batch.targets_BT)
    assert bare.tensors().keys() == {"tokens_BT", "targets_BT"}
    assert equal(Batch.cat(bare.split(3)), bare)
    with pytest.raises(AssertionError, match="field"):
        Batch.cat([batch, bare])


def test_targets_are_counted_whatever_they_weigh() -> None:
    batch = full_batch()
    batch.targets_BT[1:] = IGNORE_INDEX
    assert batch.weights_BT is not None
    batch.weights_BT[1:] = torch.nan
    assert int(batch.num_targets) == T
    assert float(batch.total_weight) == (0 + 1 + 2 + 3) / 2
    assert float(Batch(batch.tokens_BT, batch.targets_BT).total_weight) == T
