"""Rotary positions (Su et al. 2021).

Shape letters: B batch, T tokens, H heads, K head dimension. A tensor without letters has the shape
that its docstring gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from triax.models.architecture import Attention, RopeScaling


def rotary_table(
    layer: Attention,
    num_positions: int,
    device: torch.device,
    positions_BT: Tensor | None = None,
) -> Tensor | None:
    """Cosines and sines of RoPE's angles, shape (2, T, K), fp32; None for a layer without RoPE.

    Of `num_positions` from 0 on, or of the given ones, whose table is (2, B, T, K).

    The angle of dimension pair i at position t is `t * theta^(-2i/K)`; pairs are (i, i + K/2), as
    in published Llama weights.
    """
    if layer.rotary is None:
        return None
    exponents = torch.arange(0, layer.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = layer.rotary.theta ** (-exponents / layer.head_dim)
    if layer.rotary.scaling is not None:
        frequencies = _stretch_low_frequencies(frequencies, layer.rotary.scaling)
    if positions_BT is None:
        positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    else:
        positions = positions_BT.float()
    half = positions[..., None] * frequencies
    angles = torch.cat((half, half), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x_BTHK: Tensor, rotary: Tensor) -> Tensor:
    """Turn each dimension pair by its position's angle, in fp32, returned in x's dtype."""
    cos_T1K, sin_T1K = rotary.unsqueeze(-2).unbind()
    first, second = x_BTHK.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BTHK.float() * cos_T1K + turned * sin_T1K).to(x_BTHK.dtype)


def _stretch_low_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones are kept, and those
    between are interpolated by how often they turn within the original context."""
    turns = scaling.original_seq_len * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_share = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept_share + (1 - kept_share) / scaling.factor)
