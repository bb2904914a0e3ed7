"""AdamW over named parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from triax.parallel.engines.protocol import MakeOptimizer
from triax.training.apex import chosen, find_fused_adam
from triax.training.config import OptimizerConfig


def optimizer_maker(config: OptimizerConfig) -> MakeOptimizer:
    """A function that builds AdamW (Loshchilov and Hutter 2019) over the engine's parameters.

    Weight decay acts on matrices (the embedding among them) and not on norms. A fused kernel is
    used: torch's is there on CPU and CUDA, and skips an update by a flag on the device; apex's
    takes plain tensors only, which the deepspeed engine has.
    """

    def make(parameters: Mapping[str, Tensor]) -> Optimizer:
        matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
        vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        fused_adam = chosen(
            config,
            find_fused_adam,
            can_take=not any(isinstance(parameter, DTensor) for parameter in parameters.values()),
            on_cuda=all(parameter.is_cuda for parameter in parameters.values()),
        )
        if fused_adam is not None:
            return fused_adam(groups, lr=config.lr, betas=config.betas, eps=config.eps)  # type: ignore[call-arg]
        return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)

    return make
