"""Sums of squares that are right at any size.

Torch's norms on a CPU add up one after another in fp32: 50 million elements come out 4 parts in a
thousand too small, so that a norm would depend on how a tensor is divided between processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROW = 1024
"""Elements that a CPU adds up in fp32, in several sums side by side; those of rows come together
in fp64. As exact as a sum in fp64 to 1e-8, as fast as torch's norm, and without a large copy."""


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Each tensor's sum of squares.

    Args:
        tensors: at least one, of any floating point dtypes, all on one device.

    Returns:
        One fp64 number for each, on their device; nobody waits for it.
    """
    if tensors[0].is_cuda:
        # Kernels there add up as a tree, in blocks of some thousand elements.
        norms = _norms_at_once(tensors)
        return torch.stack(norms).double().square()
    return torch.stack([_squared_norm_by_rows(tensor) for tensor in tensors])


def _norms_at_once(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's L2 norm in fp32. Of those of one dtype together: torch has a kernel for them
    all then, and one for each if dtypes are mixed."""
    norms: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        alike = [tensors[place] for place in places]
        norms.update(zip(places, torch._foreach_norm(alike, 2, dtype=torch.float32), strict=True))
    return [norms[place] for place in range(len(tensors))]


def _squared_norm_by_rows(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    num_whole = flat.numel() // _ROW * _ROW
    rows, rest = flat[:num_whole].view(-1, _ROW), flat[num_whole:].view(1, -1)
    norms = [torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x in (rows, rest)]
    return torch.cat(norms).double().square().sum()
