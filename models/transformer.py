"""The decoder-only transformer, for one device; how it is spread is decided outside.

Shape letters: B batch, T tokens, D hidden size, V vocabulary, N = B x T.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

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

    def forward(self, x_BTD: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Transformer(nn.Module):
    """Embedding, blocks, norm and head of a Llama-style language model.

    Blocks live in a ModuleDict, so that a pipeline stage can drop some and the others keep their
    parameters' names. The names map one to one to Hugging Face's Llama.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def hidden_states(self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Normalised hidden states (B, T, D) in the weights' dtype, ready for the head."""
        num_tokens, device = tokens_BT.shape[1], tokens_BT.device
        rotary = rotary_table(self.config, num_tokens, device)
        mask = attention_mask(document_ids_BT, num_tokens, self.config.sliding_window, device)
        h_BTD = self.embedding(tokens_BT)
        for block in self.blocks.values():
            h_BTD = block(h_BTD, rotary, mask)
        return self.norm(h_BTD)

    def logits(self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) in fp32 for int64 tokens (B, T)."""
        h_BTD = self.hidden_states(tokens_BT, document_ids_BT)
        return capped_logits(h_BTD, self.head.weight, self.config.logit_softcap)

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, document_ids_BT: Tensor | None, weight: Tensor
    ) -> LossSums:
        """Loss sums over the target tokens of one micro-batch.

        Args:
            tokens_BT: int64 token ids.
            targets_BT: int64 next tokens; `IGNORE_INDEX` where nothing is to be predicted.
            document_ids_BT: integers that differ between the documents packed into a row; None
                lets every token see all that came before it.
            weight: fp32 scalar that multiplies the objective.
        """
        h_ND = self.hidden_states(tokens_BT, document_ids_BT).flatten(0, 1)
        options = LossOptions(self.config.z_loss, self.config.logit_softcap)
        return chunked_cross_entropy(h_ND, self.head.weight, targets_BT.flatten(), weight, options)
