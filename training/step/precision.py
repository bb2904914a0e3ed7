"""Dynamic loss scaling for fp16, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from triax.parallel.config import PrecisionConfig


class LossScaler:
    """Keeps fp16 gradients in range (Micikevicius et al. 2018, section 3.2).

    The scale halves after an update whose gradient overflowed, and doubles after
    `loss_scale_window` updates without an overflow. In other precisions it stays 1.

    Attributes:
        scale: fp32 scalar on the device that multiplies the loss.
    """

    def __init__(self, config: PrecisionConfig, device: torch.device) -> None:
        self.enabled = config.compute == "fp16"
        initial = config.initial_loss_scale if self.enabled else 1.0
        self.scale = torch.tensor(initial, device=device)
        self._window = config.loss_scale_window
        self._num_clean = torch.zeros((), device=device)

    def update(self, overflowed: Tensor) -> None:
        """Count one update; `overflowed` is a scalar, 1 or 0."""
        if not self.enabled:
            return
        clean = (self._num_clean + 1) * (1 - overflowed)
        grow = (clean >= self._window).float()
        self.scale = self.scale * torch.where(overflowed > 0, 0.5, 1.0 + grow)
        self._num_clean = clean * (1 - grow)

    def state(self) -> dict[str, float]:
        """For the checkpoint's record; waits for the device. Empty in other precisions: a run
        that changes to fp16 begins with the initial scale, not with a scale of 1."""
        if not self.enabled:
            return {}
        return {"scale": self.scale.item(), "num_clean": self._num_clean.item()}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        if self.enabled and state:
            self.scale.fill_(state["scale"])
            self._num_clean.fill_(state["num_clean"])
