"""The decoder-only transformer, for one device; how it is spread is decided outside.

Shape letters: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from triax.common.tokens import IGNORE_INDEX
from triax.models.architecture import Attention, Experts
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.layers.block import Block
from triax.models.layers.head import Head
from triax.models.layers.loss import LossSums
from triax.models.layers.masks import attention_mask
from triax.models.layers.norm import make_norm
from triax.models.layers.positions import LearnedPositions
from triax.models.layers.rotary import rotary_table
from triax.models.layers.router import Objective


class Transformer(nn.Module):
    """Embedding, blocks, norm and head of a language model, as its architecture says.

    Blocks live in a ModuleDict, so that a pipeline stage can drop some and the others keep their
    parameters' names; a stage without embedding, norm or head has None in their place. All
    parameters are those of the table in `models/description.py`, in its order.
    """

    embedding: nn.Embedding | None
    positions: LearnedPositions | None
    norm: nn.RMSNorm | nn.LayerNorm | None
    head: Head | None
    make_mask: Callable[..., Tensor | BlockMask | None] = staticmethod(attention_mask)
    """`attention_mask`, or `block_mask`, which compiled blocks on a GPU are fast with."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.description = describe(config)
        model = self.description.architecture
        width, num_positions = model.hidden_size, model.num_positions
        self.embedding = nn.Embedding(model.vocab_size, width)
        self.positions = None
        if num_positions is not None:
            self.positions = LearnedPositions(num_positions, width, model.init_std)
        self.blocks = nn.ModuleDict(
            {str(number): Block(layer, width) for number, layer in enumerate(model.layers)}
        )
        self.norm = make_norm(model.norm, width)
        self.head = Head(model)
        self._has_experts = any(isinstance(layer.feed_forward, Experts) for layer in model.layers)
        self.tie()

    def keep(self, layers: range) -> None:
        """Become the pipeline stage of these layers: drop what belongs to others."""
        num_layers = len(self.blocks)
        for name in list(self.blocks):
            if int(name) not in layers:
                del self.blocks[name]
        if layers.start > 0:
            self.embedding = self.positions = None
        if layers.stop < num_layers:
            self.norm = self.head = None

    def tie(self) -> None:
        """Make embedding and head one parameter, if they are to be and both are here.

        Needed again after what gives every module a parameter of its own, such as `to_empty`.
        """
        if self.config.tie_embeddings and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight

    def hidden_states(
        self,
        x: Tensor,
        num_tokens: int,
        document_ids_BT: Tensor | None = None,
        objective: Objective | None = None,
    ) -> Tensor:
        """The last block's output (B, T, D) in the weights' dtype.

        Args:
            x: int64 token ids (B, T), or the former stage's output where there is no embedding.
            num_tokens: T, which `x` doesn't tell where its tokens are divided over processes.
            document_ids_BT: as in `forward`.
            objective: for layers with a loss of their own; None where nothing is differentiated.
        """
        layers = [self._attention(number) for number in self.blocks]
        masks = {
            window: self.make_mask(document_ids_BT, num_tokens, window, x.device)
            for window in {layer.window for layer in layers}
        }
        turns = {
            (layer.rotary, layer.head_dim): rotary_table(layer, num_tokens, x.device)
            for layer in dict.fromkeys(layers)
        }
        h_BTD = x if self.embedding is None else self.embedding(x)
        if self.positions is not None:
            h_BTD = self.positions(h_BTD)
        for layer, block in zip(layers, self.blocks.values(), strict=True):
            turn, mask = turns[layer.rotary, layer.head_dim], masks[layer.window]
            h_BTD = block(h_BTD, turn, mask, objective)
        return h_BTD

    def _attention(self, block: str) -> Attention:
        return self.description.architecture.layers[int(block)].attention

    def logits(self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) in fp32 for int64 tokens (B, T); needs the whole model."""
        assert self.norm is not None and self.head is not None
        h_BTD = self.hidden_states(tokens_BT, tokens_BT.shape[1], document_ids_BT)
        return self.head.logits(self.norm(h_BTD))

    def forward(
        self, x: Tensor, targets_BT: Tensor, document_ids_BT: Tensor | None, weight: Tensor
    ) -> LossSums | Tensor:
        """Loss sums over the target tokens of one micro-batch.

        Args:
            x: int64 token ids (B, T), or the former stage's output where there is no embedding.
            targets_BT: int64 next tokens; `IGNORE_INDEX` where nothing is to be predicted.
            document_ids_BT: integers that differ between the documents packed into a row; None
                lets every token see all that came before it.
            weight: fp32 scalar that multiplies the objective.

        Returns:
            Loss sums; the last block's output (B, T, D) from a stage without a head.
        """
        objective = None
        if self._has_experts and torch.is_grad_enabled():
            objective = Objective(targets_BT != IGNORE_INDEX, weight)
        h_BTD = self.hidden_states(x, targets_BT.shape[1], document_ids_BT, objective)
        if self.norm is None or self.head is None:
            return h_BTD
        sums: LossSums = self.head(self.norm(h_BTD), targets_BT, weight)
        return sums
