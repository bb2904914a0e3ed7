"""NVIDIA's apex, where it is installed: its fused Adam and its fused RMSNorm.

The package of that name on the public index is another one, so apex is known by what it offers.
It is usable only if it was compiled, which its classes find out when one of them is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from triax.common.errors import UserError
from triax.parallel.engine import RMSNorm
from triax.training.config import OptimizerConfig

T = TypeVar("T")


def chosen(
    config: OptimizerConfig, find: Callable[[], T | None], *, can_take: bool, on_cuda: bool
) -> T | None:
    """A part of apex, if it is asked for, or if it is there and can take the tensors.

    Args:
        config: whose `implementation` says what is asked for.
        find: a function of this module.
        can_take: the tensors are plain ones.
        on_cuda: the tensors are on a CUDA device.

    Raises:
        UserError: it is asked for and can't be used.
    """
    if config.implementation in ("torch", "compiled"):
        return None
    if config.implementation == "auto":
        return find() if can_take and on_cuda else None
    found = find()
    if found is None or not can_take:
        reason = (
            "NVIDIA's apex can't be used here" if found is None else "DTensors are not for apex"
        )
        raise UserError(f'optimizer.implementation: {reason}; use "torch"')
    return found


def find_fused_adam() -> type[Optimizer] | None:
    """Apex's FusedAdam with its steps counted as torch counts them; None where it can't be used."""
    try:
        from apex.optimizers import FusedAdam

        FusedAdam([torch.zeros(1, requires_grad=True)], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
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


def find_fused_rms_norm() -> RMSNorm | None:
    """The function within apex's FusedRMSNorm; None where it can't be used.

    The module would bring a weight of its own, and the engine has to reach the weight between the
    parameter and the product.
    """
    try:
        from apex.normalization import FusedRMSNorm
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        FusedRMSNorm(1)
    except Exception:
        return None

    def compute(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        result: Tensor = fused_rms_norm_affine(x, weight, weight.shape, eps)
        return result

    return compute
