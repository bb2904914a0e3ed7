"""NVIDIA's apex, where it is installed: its fused Adam.

The package of that name on the public index is another one, so apex is known by what it offers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def find_fused_adam() -> type[Optimizer] | None:
    """Apex's FusedAdam with its steps counted as torch counts them; None where it isn't there."""
    try:
        from apex.optimizers import FusedAdam
    except Exception:  # whatever a stranger's package of that name does when it is imported
        return None

    class CountedFusedAdam(FusedAdam):
        """Apex counts the steps of a group outside of the state that is saved, and DeepSpeed
        updates a group in parts: the count is kept with each tensor's moments instead."""

        def step(self, *args: Any, **kwargs: Any) -> Any:
            for group in self.param_groups:
                counts = [self.state[p]["step"] for p in group["params"] if self.state.get(p)]
                group["step"] = int(counts[0]) if counts else 0
            result = super().step(*args, **kwargs)
            for group in self.param_groups:
                for parameter in group["params"]:
                    count = self.state[parameter].setdefault("step", torch.zeros(()))
                    count.fill_(group["step"])
            return result

    return CountedFusedAdam
