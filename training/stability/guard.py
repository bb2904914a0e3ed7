"""Judges a step by its loss and gradient norm, before the update."""

from __future__ import annotations

import torch
from torch import Tensor


class Guard:
    """Refuses steps whose loss or gradient is not finite.

    It reads sums over all processes, so every process comes to the same verdict, and it answers
    with a tensor on the device, so the host doesn't wait.
    """

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1 to skip the update, 0 to take it; fp32 scalar like its arguments."""
        return 1.0 - (torch.isfinite(loss) & torch.isfinite(grad_norm)).float()
