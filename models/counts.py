"""Parameter and FLOP counts: sums over the model's table. Imports no torch."""

from __future__ import annotations

from triax.models.config import ModelConfig
from triax.models.description import EMBEDDINGS, describe


def num_parameters(config: ModelConfig) -> int:
    """All weights, a tied embedding once (Hoffmann et al. 2022's N)."""
    return sum(parameter.num_elements for parameter in describe(config).weights.values())


def num_trained_parameters(config: ModelConfig) -> int:
    """Weights that have gradients: all, or those of adapters."""
    return sum(parameter.num_elements for parameter in describe(config).trained.values())


def num_active_parameters(config: ModelConfig, *, with_embeddings: bool = True) -> int:
    """Weights that a token passes: of experts, those that it chooses and the shared ones."""
    return sum(
        parameter.num_active
        for parameter in describe(config).weights.values()
        if with_embeddings or parameter.role not in EMBEDDINGS
    )


def num_non_embedding_parameters(config: ModelConfig) -> int:
    """Weights outside of embeddings and head (Kaplan et al. 2020's N)."""
    return sum(
        parameter.num_elements
        for parameter in describe(config).weights.values()
        if parameter.role not in EMBEDDINGS
    )


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Floating-point operations that training needs for one token, forward and backward.

    6 for each matrix weight that multiplies (blocks and head; the embedding is a look-up) plus
    12 LHKT for attention, causal masking not deducted: the convention of PaLM (Chowdhery et al.
    2022, appendix B), which MFU figures in the literature use. Recomputation is not counted. A
    sliding window bounds T. Of experts those count that a token chooses.
    """
    model = describe(config)
    return sum(model.layer_flops_per_token(seq_len)) + model.head_flops_per_token()
