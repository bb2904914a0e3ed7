"""The decoder-only transformer, for one device; how it is spread is decided outside.

Shape letters: B batch, T tokens, D hidden size, V vocabulary, N = B x T.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from triax.models.attention import Attention, attention_mask, rotary_table
from triax.models.config import ModelConfig
from triax.models.loss import LossOptions, LossSums, capped_logits, chunked_cross_entropy


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): `down(silu(gate(x)) * up(x))`, without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.down = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotary: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Head(nn.Module):
    """The output projection and the loss, which never meet as a whole matrix of logits."""

    weight: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        nn.init.normal_(self.weight, std=config.init_std)
        self.options = LossOptions(config.z_loss, config.logit_softcap)

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Logits (B, T, V) in fp32."""
        return capped_logits(h_BTD, self.weight, self.options.softcap)

    def forward(self, h_BTD: Tensor, targets_BT: Tensor, weight: Tensor) -> LossSums:
        """Loss sums; the arguments are those of `Transformer.forward`."""
        return chunked_cross_entropy(
            h_BTD.flatten(0, 1), self.weight, targets_BT.flatten(), weight, self.options
        )


class Transformer(nn.Module):
    """Embedding, blocks, norm and head of a Llama-style language model.

    Blocks live in a ModuleDict, so that a pipeline stage can drop some and the others keep their
    parameters' names; a stage without embedding, norm or head has None in their place. The names
    map one to one to Hugging Face's Llama.
    """

    embedding: nn.Embedding | None
    norm: nn.RMSNorm | None
    head: Head | None
    make_mask: Callable[..., Tensor | BlockMask | None] = staticmethod(attention_mask)
    """`attention_mask`, or `block_mask`, which compiled blocks on a GPU are fast with."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Head(config)
        self.tie()

    def tie(self) -> None:
        """Make embedding and head one parameter, if they are to be and both are here.

        Needed again after what gives every module a parameter of its own, such as `to_empty`.
        """
        if self.config.tie_embeddings and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight

    def hidden_states(
        self, x: Tensor, num_tokens: int, document_ids_BT: Tensor | None = None
    ) -> Tensor:
        """The last block's output (B, T, D) in the weights' dtype.

        Args:
            x: int64 token ids (B, T), or the former stage's output where there is no embedding.
            num_tokens: T, which `x` doesn't tell where its tokens are divided over processes.
            document_ids_BT: as in `forward`.
        """
        rotary = rotary_table(self.config, num_tokens, x.device)
        mask = self.make_mask(document_ids_BT, num_tokens, self.config.sliding_window, x.device)
        h_BTD = x if self.embedding is None else self.embedding(x)
        for block in self.blocks.values():
            h_BTD = block(h_BTD, rotary, mask)
        return h_BTD

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
        h_BTD = self.hidden_states(x, targets_BT.shape[1], document_ids_BT)
        if self.norm is None or self.head is None:
            return h_BTD
        sums: LossSums = self.head(self.norm(h_BTD), targets_BT, weight)
        return sums
