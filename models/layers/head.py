"""The output projection and the loss, which never meet as a whole matrix of logits.

Shape letters: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triax.models.architecture import Architecture
from triax.models.batch import Batch
from triax.models.layers.loss import LossOptions, LossSums, capped_logits, chunked_cross_entropy
from triax.models.layers.output import Shape


class Head(nn.Module):
    """The rows of the vocabulary, and what is added to plain cross entropy."""

    weight: Tensor

    def __init__(self, model: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))
        nn.init.normal_(self.weight, std=model.init_std)
        self.options = LossOptions(model.z_loss, model.logit_softcap)

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Logits (B, T, V) in fp32."""
        return capped_logits(h_BTD, self.weight, self.options.softcap)

    @property
    def sum_shapes(self) -> dict[str, Shape]:
        """The sums that it tells beside the cross entropy."""
        return {"z_loss": ()} if self.options.z_loss else {}

    def forward(self, h_BTD: Tensor, batch: Batch, weight: Tensor) -> LossSums:
        """Loss sums; the arguments are those of `Transformer.forward`."""
        return head_loss(h_BTD, self.weight, batch, weight, self.options)


def head_loss(
    h_BTD: Tensor, head_VD: Tensor, batch: Batch, weight: Tensor, options: LossOptions
) -> LossSums:
    """`chunked_cross_entropy` of a batch, with the rows of the head that are here."""
    weights_BT = batch.weights_BT
    return chunked_cross_entropy(
        h_BTD.flatten(0, 1),
        head_VD,
        batch.targets_BT.flatten(),
        weight,
        options,
        None if weights_BT is None else weights_BT.flatten(),
    )
