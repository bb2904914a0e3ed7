"""AdamW over named parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from triax.common.errors import UserError
from triax.parallel.config import PrecisionConfig
from triax.parallel.engines.protocol import MakeOptimizer
from triax.training.adamw import MixedAdamW
from triax.training.apex import find_fused_adam
from triax.training.config import OptimizerConfig


def optimizer_maker(
    config: OptimizerConfig, precision: PrecisionConfig | None = None
) -> MakeOptimizer:
    """A function that builds AdamW (Loshchilov and Hutter 2019) over the engine's parameters.

    Weight decay acts on matrices (the embedding among them) and not on norms. A fused kernel is
    used: torch's is there on CPU and CUDA, and skips an update by a flag on the device; apex's
    takes plain tensors only, which the deepspeed engine has. Where moments or gradients are bf16,
    or on request, it is our own.
    """
    state_dtype = torch.bfloat16 if config.state_dtype == "bf16" else torch.float32
    has_fp32_gradients = precision is None or precision.gradients == "fp32"

    def make(parameters: Mapping[str, Tensor]) -> Optimizer:
        matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
        vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        is_mixed = config.state_dtype != "fp32" or not has_fp32_gradients
        if is_mixed or config.implementation == "compiled":
            return MixedAdamW(groups, state_dtype=state_dtype, **settings)
        fused_adam = _apex_for(config, [*matrices, *vectors])
        if fused_adam is not None:
            return fused_adam(groups, **settings)
        return AdamW(groups, fused=True, **settings)

    return make


def _apex_for(config: OptimizerConfig, parameters: Sequence[Tensor]) -> type[Optimizer] | None:
    """Apex's optimizer, if it is asked for, or if it is there and can take the parameters.

    Raises:
        UserError: it is asked for and can't be used.
    """
    can_take = not any(isinstance(parameter, DTensor) for parameter in parameters)
    if config.implementation == "torch":
        return None
    if config.implementation == "auto":
        on_cuda = all(parameter.is_cuda for parameter in parameters)
        return find_fused_adam() if can_take and on_cuda else None
    found = find_fused_adam()
    if found is None or not can_take:
        reason = "NVIDIA's apex can't be imported" if found is None else "DTensors are not for apex"
        raise UserError(f'optimizer.implementation: {reason}; use "torch"')
    return found
