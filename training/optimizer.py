"""AdamW over named parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from triax.parallel.config import PrecisionConfig
from triax.parallel.engines.protocol import MakeOptimizer
from triax.training.adamw import MixedAdamW
from triax.training.apex import chosen, find_fused_adam
from triax.training.config import OptimizerConfig


def optimizer_maker(
    config: OptimizerConfig, precision: PrecisionConfig | None = None, *, is_native: bool = False
) -> MakeOptimizer:
    """A function that builds AdamW (Loshchilov and Hutter 2019) over the engine's parameters.

    Weight decay acts on matrices (the embedding among them) and not on norms. A fused kernel is
    used: torch's is there on CPU and CUDA, and skips an update by a flag on the device; apex's
    takes plain tensors only, which the deepspeed engine has. Our own takes moments and gradients in
    bf16, and writes the weights that masters stand behind: it is used for either, and on request.
    """
    state_dtype = torch.bfloat16 if config.state_dtype == "bf16" else torch.float32
    has_fp32_gradients = precision is None or precision.gradients == "fp32"
    is_fp32 = precision is None or precision.compute == "fp32"

    def make(parameters: Mapping[str, Tensor]) -> Optimizer:
        matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
        vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        is_mixed = config.state_dtype != "fp32" or not has_fp32_gradients
        are_plain = not any(isinstance(parameter, DTensor) for parameter in parameters.values())
        on_cuda = all(parameter.is_cuda for parameter in parameters.values())
        are_masters = is_native and are_plain and not is_fp32
        is_ours = config.implementation == "auto" and are_masters and on_cuda
        if is_mixed or is_ours or config.implementation == "compiled":
            by_block = [part for group in groups for part in _by_block(parameters, group)]
            return MixedAdamW(by_block, state_dtype=state_dtype, **settings)
        fused_adam = chosen(
            config,
            find_fused_adam,
            can_take=are_plain and not is_native,
            on_cuda=on_cuda,
        )
        if fused_adam is not None:
            return fused_adam(groups, **settings)
        return AdamW(groups, fused=True, **settings)

    return make


def _by_block(
    parameters: Mapping[str, Tensor], group: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A group's parameters of each transformer block, and each other one, as groups."""
    names = {parameter: name for name, parameter in parameters.items()}

    def place(parameter: Tensor) -> str:
        name = names[parameter]
        return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name

    for _, members in itertools.groupby(group["params"], key=place):
        yield {**group, "params": list(members)}
