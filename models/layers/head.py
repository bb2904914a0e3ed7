"""The output projection and the loss, which never meet as a whole matrix of logits.

Shape letters: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triax.models.architecture import Architecture
from triax.models.layers.loss import LossOptions, LossSums, capped_logits, chunked_cross_entropy


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

    def forward(self, h_BTD: Tensor, targets_BT: Tensor, weight: Tensor) -> LossSums:
        """Loss sums; the arguments are those of `Transformer.forward`."""
        return chunked_cross_entropy(
            h_BTD.flatten(0, 1), self.weight, targets_BT.flatten(), weight, self.options
        )
