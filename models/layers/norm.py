"""Normalisation layers."""

from __future__ import annotations

from torch import nn

from triax.models.architecture import Norm, NormKind


def make_norm(norm: Norm, size: int) -> nn.RMSNorm | nn.LayerNorm:
    """The layer that normalises `size` features."""
    if norm.kind is NormKind.RMS:
        return nn.RMSNorm(size, norm.eps)
    return nn.LayerNorm(size, norm.eps)
