"""Parameter and FLOP counts, by arithmetic alone. Imports no torch.

Shape letters: V vocabulary, D hidden size, H query heads, G key/value heads, K head dimension,
F feed-forward hidden size, L layers, T sequence length.
"""

from __future__ import annotations

from triax.models.config import ModelConfig


def _block_matrices(config: ModelConfig) -> int:
    """Weights of one block's matrices: DHK queries, 2 DGK keys and values, HKD output, 3 DF MLP."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.hidden_size * (attention + 3 * config.ffn_hidden_size)


def _block_norms(config: ModelConfig) -> int:
    return 2 * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0)


def num_embedding_parameters(config: ModelConfig) -> int:
    """Weights of the embedding and the head; one matrix when they are tied."""
    return config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)


def num_non_embedding_parameters(config: ModelConfig) -> int:
    """Weights outside the embedding and the head (Kaplan et al. 2020's N)."""
    block = _block_matrices(config) + _block_norms(config)
    return config.num_layers * block + config.hidden_size


def num_parameters(config: ModelConfig) -> int:
    """All weights, a tied embedding once (Hoffmann et al. 2022's N)."""
    return num_embedding_parameters(config) + num_non_embedding_parameters(config)


def block_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """One block's part of `flops_per_token`."""
    context = min(seq_len, config.sliding_window or seq_len)
    return 6 * _block_matrices(config) + 12 * config.num_heads * config.head_dim * context


def head_flops_per_token(config: ModelConfig) -> int:
    """The head's part of `flops_per_token`."""
    return 6 * config.vocab_size * config.hidden_size


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Floating-point operations that training needs for one token, forward and backward.

    6 for each matrix weight that multiplies (blocks and head; the embedding is a look-up) plus
    12 LHKT for attention, causal masking not deducted: the convention of PaLM (Chowdhery et al.
    2022, appendix B), which MFU figures in the literature use. Recomputation is not counted. A
    sliding window bounds T.
    """
    return config.num_layers * block_flops_per_token(config, seq_len) + head_flops_per_token(config)
