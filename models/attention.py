"""Grouped-query self-attention with rotary positions.

Shape letters: B batch, T tokens, D hidden size, H query heads, G key/value heads, K head
dimension. A tensor without letters has the shape that its docstring gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from triax.models.config import ModelConfig, RopeScaling

_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _stretch_low_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones are kept, and those
    between are interpolated by how often they turn within the original context."""
    turns = scaling.original_seq_len * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_share = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept_share + (1 - kept_share) / scaling.factor)


def rotary_table(config: ModelConfig, num_positions: int, device: torch.device) -> Tensor:
    """Cosines and sines of RoPE's angles (Su et al. 2021), shape (2, T, K), fp32.

    The angle of dimension pair i at position t is `t * theta^(-2i/K)`; pairs are (i, i + K/2), as
    in published Llama weights.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = config.rope_theta ** (-exponents / config.head_dim)
    if config.rope_scaling is not None:
        frequencies = _stretch_low_frequencies(frequencies, config.rope_scaling)
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles_TK = torch.outer(positions, frequencies).repeat(1, 2)
    return torch.stack((angles_TK.cos(), angles_TK.sin()))


def rotate(x_BTHK: Tensor, rotary: Tensor) -> Tensor:
    """Turn each dimension pair by its position's angle, in fp32, returned in x's dtype."""
    cos_T1K, sin_T1K = rotary.unsqueeze(2)
    first, second = x_BTHK.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BTHK.float() * cos_T1K + turned * sin_T1K).to(x_BTHK.dtype)


def attention_mask(
    document_ids_BT: Tensor | None,
    num_tokens: int,
    sliding_window: int | None,
    device: torch.device,
) -> Tensor | None:
    """Which keys each query sees: bool, broadcastable to (B, 1, T, T); None for plain causal."""
    window = sliding_window if sliding_window is not None and sliding_window < num_tokens else None
    if document_ids_BT is None and window is None:
        return None
    position = torch.arange(num_tokens, device=device)
    age_TT = position[:, None] - position[None, :]
    visible_BTT = (age_TT >= 0)[None]
    if window is not None:
        visible_BTT = visible_BTT & (age_TT < window)
    if document_ids_BT is not None:
        visible_BTT = visible_BTT & (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])
    return visible_BTT[:, None]


def attend(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Tensor | BlockMask | None
) -> Tensor:
    """Mix the values by softmax(q k^T / sqrt(K)); (B, H, T, K). Heads share G keys and values."""
    has_groups = q_BHTK.shape[1] != k_BGTK.shape[1]
    if isinstance(mask, BlockMask):
        mixed: Tensor = flex_attention(
            q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=has_groups
        )
        return mixed
    # With such masks cuDNN's backward pass can give NaN (pytorch issue 196678; torch 2.11 to 2.13).
    is_safe = mask is None or k_BGTK.shape[2] % 128 != 64
    with nullcontext() if is_safe else sdpa_kernel(_WITHOUT_CUDNN):
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, is_causal=mask is None, enable_gqa=has_groups
        )


def project_apart(x_BTD: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Each layer's output for the same input."""
    return [linear(x_BTD) for linear in linears]


class Attention(nn.Module):
    """Causal self-attention: query, key, value and output projections without biases.

    With `qk_norm`, queries and keys are RMS-normalised over the head dimension before RoPE.
    """

    project: Callable[..., Sequence[Tensor]] = staticmethod(project_apart)
    """How queries, keys and values come about: by `project_apart`, or by one larger product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        self.head_dim = head_dim
        self.query = nn.Linear(width, config.num_heads * head_dim, bias=False)
        self.key = nn.Linear(width, config.num_kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, config.num_kv_heads * head_dim, bias=False)
        self.output = nn.Linear(config.num_heads * head_dim, width, bias=False)
        self.query_norm = nn.RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, rotary: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        """Attend over x (B, T, D); `rotary` from `rotary_table`, `mask` from `attention_mask` or
        `block_mask`."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTD, k_BTD, v_BTD = self.project(x_BTD, (self.query, self.key, self.value))
        q_BTHK = rotate(self.query_norm(q_BTD.view(heads)), rotary)
        k_BTGK = rotate(self.key_norm(k_BTD.view(heads)), rotary)
        v_BTGK = v_BTD.view(heads)
        mixed_BHTK = attend(
            q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2), mask
        )
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))
