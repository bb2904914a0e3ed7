"""The model's input: one micro-batch of sequences.

Shape letters: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from triax.common.tokens import IGNORE_INDEX


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch. Every tensor is (B, T), so batches are cut, joined and sent field by field
    by code that doesn't know the fields; whoever cuts along T cuts all of them."""

    tokens_BT: Tensor
    """int64."""
    targets_BT: Tensor
    """int64: the token that follows each position, or IGNORE_INDEX: nothing is to be predicted."""
    document_ids_BT: Tensor | None = None
    """Integers that differ between the documents packed into a row, one behind the other; None lets
    every token see all that came before it."""
    positions_BT: Tensor | None = None
    """int64: each token's position in its sequence; None counts from 0. They turn heads and choose
    learned vectors, and hide nothing: what a token sees follows from its place in the row."""
    weights_BT: Tensor | None = None
    """fp32: how much each target counts; None counts each once. Read at targets only."""

    reference_BT: Tensor | None = None
    """fp32: at each document's first token what the log-probabilities of its targets, each times
    its own weight, sum to under a reference model; 0 elsewhere. The model doesn't read it."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed in the same way."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def to(self, device: torch.device) -> Batch:
        """Begin to copy it to the device; nobody waits for it."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, for asynchronous copies to a GPU."""
        return self.map(Tensor.pin_memory)

    def split(self, num_rows: int) -> list[Batch]:
        """Micro-batches of so many sequences, the last perhaps of fewer; views."""
        parts = {name: tensor.split(num_rows) for name, tensor in self.tensors().items()}
        return [
            Batch(**dict(zip(parts, part, strict=True)))
            for part in zip(*parts.values(), strict=True)
        ]

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """The sequences of several batches as one; all of them have the same fields."""
        parts = [batch.tensors() for batch in batches]
        assert all(part.keys() == parts[0].keys() for part in parts), "some lack a field"
        return Batch(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @property
    def is_target_BT(self) -> Tensor:
        """Where something is to be predicted."""
        return self.targets_BT != IGNORE_INDEX

    @property
    def num_targets(self) -> Tensor:
        """Target tokens, whatever they weigh; int64 scalar."""
        return self.is_target_BT.sum()

    @property
    def counted_BT(self) -> Tensor:
        """How much each token counts where tokens themselves are counted: targets by their weights'
        size, others not; fp32."""
        if self.weights_BT is None:
            return self.is_target_BT.float()
        return self.weights_BT.abs().where(self.is_target_BT, 0)

    @property
    def total_weight(self) -> Tensor:
        """Sum of the targets' weights, by which the loss is divided; fp64 scalar."""
        if self.weights_BT is None:
            return self.num_targets.double()
        return self.weights_BT.double().where(self.is_target_BT, 0).sum()
