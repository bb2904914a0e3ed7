"""The decoder-only transformer, for one device; how it is spread is decided outside.

Shape letters: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from triax.models.architecture import Attention
from triax.models.batch import Batch
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.layers.block import Block
from triax.models.layers.head import Head
from triax.models.layers.loss import LossSums
from triax.models.layers.low_rank import add_factors
from triax.models.layers.masks import Mask, attention_mask
from triax.models.layers.norm import make_norm
from triax.models.layers.output import (
    Collected,
    Output,
    Shape,
    declared_sums,
    shapes_by_layer,
)
from triax.models.layers.positions import LearnedPositions
from triax.models.layers.rotary import rotary_table


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
    sum_shapes: dict[str, Shape]
    """All sums of `Output`, those of other pipeline stages too, in the same order everywhere."""
    make_mask: Callable[..., Mask] = staticmethod(attention_mask)
    """`attention_mask`; or `block_mask`, which compiled blocks on a GPU are fast with; or `reach`,
    where a dense mask would be too large; or what is needed where others have tokens of the row."""

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
        if config.lora is not None:
            add_factors(self, self.description, config.lora.scale)
        self.norm = make_norm(model.norm, width)
        self.head = Head(model)
        self.sum_shapes = {"cross_entropy": (), "objective": ()}
        self.sum_shapes |= declared_sums(self.head) | shapes_by_layer(self.blocks.values())
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
        positions_BT: Tensor | None = None,
        collected: Collected | None = None,
        counted_BT: Tensor | None = None,
    ) -> Tensor:
        """The last block's output (B, T, D) in the weights' dtype.

        Args:
            x: int64 token ids (B, T), or the former stage's output where there is no embedding.
            num_tokens: T, which `x` doesn't tell where its tokens are divided over processes.
            document_ids_BT, positions_BT: those of a `Batch`.
            collected: takes what the layers hand up.
            counted_BT: how much each token counts in that.
        """
        collected = Collected(self.sum_shapes) if collected is None else collected
        layers = [self._attention(number) for number in self.blocks]
        masks = {
            window: self.make_mask(document_ids_BT, num_tokens, window, x.device)
            for window in {layer.window for layer in layers}
        }
        turns = {
            (layer.rotary, layer.head_dim): rotary_table(layer, num_tokens, x.device, positions_BT)
            for layer in dict.fromkeys(layers)
        }
        h_BTD = x if self.embedding is None else self.embedding(x)
        if self.positions is not None:
            h_BTD = self.positions(h_BTD, positions_BT)
        for layer, (name, block) in zip(layers, self.blocks.items(), strict=True):
            more = (counted_BT,) if block.has_experts else ()
            turn, mask = turns[layer.rotary, layer.head_dim], masks[layer.window]
            output = block(h_BTD, turn, mask, *more)
            h_BTD = collected.take(int(name), output)
        return h_BTD

    def _attention(self, block: str) -> Attention:
        return self.description.architecture.layers[int(block)].attention

    def logits(self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) in fp32 for int64 tokens (B, T); needs the whole model."""
        assert self.norm is not None and self.head is not None
        h_BTD = self.hidden_states(tokens_BT, tokens_BT.shape[1], document_ids_BT)
        return self.head.logits(self.norm(h_BTD))

    def forward(self, x: Tensor, batch: Batch, weight: Tensor) -> Output:
        """The objective of one micro-batch, and what is reported of it.

        Args:
            x: the batch's tokens, or the former stage's output where there is no embedding.
            batch: the micro-batch.
            weight: fp32 scalar that multiplies the objective.
        """
        collected = Collected(self.sum_shapes)
        num_tokens = batch.targets_BT.shape[1]
        h_BTD = self.hidden_states(
            x, num_tokens, batch.document_ids_BT, batch.positions_BT, collected, batch.counted_BT
        )
        h_BTD = collected.with_objective(h_BTD, weight)
        if self.norm is None or self.head is None:
            return Output(h_BTD, collected.sums, None)
        loss: LossSums = self.head(self.norm(h_BTD), batch, weight)
        sums = {"cross_entropy": loss.cross_entropy, "z_loss": loss.z_loss} | collected.sums
        sums["objective"] = loss.objective.detach() + sums.get("objective", 0.0)
        known = {name: value for name, value in sums.items() if name in self.sum_shapes}
        return Output(loss.objective, known, loss.log_probs_N.view(batch.targets_BT.shape))
