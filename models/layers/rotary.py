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
        frequencies = _stretch_low_frequencies(
            frequencies, layer.rotary.scaling, layer.rotary.theta
        )
    if positions_BT is None:
        positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    else:
        positions = positions_BT.float()
    half = positions[..., None] * frequencies
    angles = torch.cat((half, half), dim=-1)
    return torch.stack((angles.cos(), angles.sin())) * _amplitude(layer.rotary.scaling)


def rotate(x_BTHK: Tensor, rotary: Tensor) -> Tensor:
    """Turn each dimension pair by its position's angle, in fp32, returned in x's dtype."""
    cos_T1K, sin_T1K = rotary.unsqueeze(-2).unbind()
    first, second = x_BTHK.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BTHK.float() * cos_T1K + turned * sin_T1K).to(x_BTHK.dtype)


def _stretch_low_frequencies(frequencies: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """Low frequencies are divided by `factor`, high ones are kept, and those between are
    interpolated: by how often they turn within the original context (Llama 3.1), or by their number
    between those that turn so often (YaRN, section 3.2)."""
    original = scaling.original_seq_len
    if scaling.kind == "llama3":
        turns = original * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept_share = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        count = frequencies.numel()
        fast, slow = (
            count * math.log(original / (turns * 2 * math.pi)) / math.log(theta)
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        first, last = max(math.floor(fast), 0), min(math.ceil(slow), 2 * count - 1)
        numbers = torch.arange(count, dtype=torch.float32, device=frequencies.device)
        kept_share = 1 - ((numbers - first) / max(last - first, 1e-3)).clamp(0, 1)
    return frequencies * (kept_share + (1 - kept_share) / scaling.factor)


def _amplitude(scaling: RopeScaling | None) -> float:
    """What queries and keys are multiplied by: YaRN's temperature (section 3.4)."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return 0.1 * math.log(scaling.factor) + 1
