"""The fingerprint of what a process has read for a step."""

from __future__ import annotations

from dataclasses import replace

import torch
from worlds import SEQ_LEN, sequences

from triax.parallel.reading import fingerprint


def test_any_other_batch_has_another_fingerprint() -> None:
    rows = [sequences(first, 2, 96) for first in (0, 2)]
    rows[1] = replace(rows[1], positions_BT=rows[1].tokens_BT, weights_BT=torch.ones(2, SEQ_LEN))
    found = [fingerprint(rows), fingerprint(rows[::-1]), fingerprint(rows[:1])]
    found += [
        fingerprint([rows[0], replace(rows[1], **{name: _flipped(tensor)})])
        for name, tensor in rows[1].tensors().items()
    ]
    assert len(found) == 3 + 5, "a field that nobody compares"
    assert len(set(found)) == len(found)
    again = [batch.map(torch.clone) for batch in rows]
    assert fingerprint(again) == found[0]
    assert all(0 <= number < 2**24 for number in found)
    assert torch.tensor(found, dtype=torch.float32).int().tolist() == found


def _flipped(tensor: torch.Tensor) -> torch.Tensor:
    flipped = tensor.clone()
    flipped.view(-1)[-1] = flipped.view(-1)[-1] + 1
    return flipped
