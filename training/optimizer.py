"""AdamW over named parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import AdamW, Optimizer

from triax.parallel.engines.protocol import MakeOptimizer
from triax.training.config import OptimizerConfig


def optimizer_maker(config: OptimizerConfig) -> MakeOptimizer:
    """A function that builds AdamW (Loshchilov and Hutter 2019) over the engine's parameters.

    Weight decay acts on matrices (the embedding among them) and not on norms. The fused kernel is
    used: it is there on CPU and CUDA, and skips an update by a flag on the device.
    """

    def make(parameters: Mapping[str, Tensor]) -> Optimizer:
        matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
        vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)

    return make
