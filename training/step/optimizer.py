"""The optimizer over named parameters: AdamW, and what else `OPTIMIZERS` names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from triax.models.description import Parameter, Role
from triax.parallel.config import PrecisionConfig
from triax.parallel.dtypes import DTYPES
from triax.parallel.engine import MakeOptimizer
from triax.training.config import OptimizerConfig
from triax.training.step.adamw import MixedAdamW
from triax.training.step.apex import chosen, find_fused_adam


def optimizer_maker(
    config: OptimizerConfig,
    precision: PrecisionConfig,
    table: Mapping[str, Parameter],
    *,
    is_native: bool = False,
) -> MakeOptimizer:
    """A function that builds the optimizer over the engine's parameters.

    Weight decay acts on matrices (the embedding among them) and not on norms.

    Args:
        config: the `[optimizer]` section.
        precision: the `[precision]` section.
        table: the model's parameters, which say what decays and whose rate is another.
        is_native: it is for the native engine, whose parameters may be DTensors or main params.
    """

    def make(parameters: Mapping[str, Tensor]) -> Optimizer:
        groups = parameter_groups(config, parameters, table)
        plan = OptimizerPlan(groups, parameters, config, precision, is_native)
        return OPTIMIZERS[config.name](plan)

    return make


class OptimizerPlan(NamedTuple):
    """What an optimizer is made from."""

    groups: list[dict[str, Any]]
    """From `parameter_groups`."""
    parameters: Mapping[str, Tensor]
    config: OptimizerConfig
    precision: PrecisionConfig
    is_native: bool


def adamw(plan: OptimizerPlan) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019).

    A fused kernel is used: torch's is there on CPU and CUDA, and skips an update by a flag on the
    device; apex's takes plain tensors only, which the deepspeed engine has; our own is for what
    they can't do.
    """
    groups, parameters, config, precision, is_native = plan
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if _wants_ours(config, precision, parameters, is_native=is_native):
        by_block = [part for group in groups for part in _by_block(parameters, group)]
        return MixedAdamW(by_block, state_dtype=DTYPES[config.state_dtype], **settings)
    fused_adam = chosen(
        config, find_fused_adam, can_take=not is_native, on_cuda=_on_cuda(parameters)
    )
    if fused_adam is not None:
        return fused_adam(groups, **settings)
    return AdamW(groups, fused=True, **settings)


OPTIMIZERS: dict[str, Callable[[OptimizerPlan], Optimizer]] = {
    "adamw": adamw,
}
"""By `optimizer.name`."""


def parameter_groups(
    config: OptimizerConfig, parameters: Mapping[str, Tensor], table: Mapping[str, Parameter]
) -> list[dict[str, Any]]:
    """The parameters that are updated alike: those that decay first, then by their rate. Torch's
    kernels take those of one device mesh at once.

    A group's `lr_scale` is what the engine multiplies the learning rate by.
    """
    kinds = dict.fromkeys(
        (decays, config.lr_scales.get(role, 1.0)) for decays in (True, False) for role in Role
    )
    meshes = dict.fromkeys(getattr(each, "device_mesh", None) for each in parameters.values())
    members: dict[tuple[bool, float, DeviceMesh | None], list[Tensor]] = {
        (*kind, mesh): [] for kind in kinds for mesh in meshes
    }
    for name, parameter in parameters.items():
        row, mesh = table[name], getattr(parameter, "device_mesh", None)
        members[row.decays, config.lr_scales.get(row.role, 1.0), mesh].append(parameter)
    return [
        {
            "params": group,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": scale,
        }
        for (decays, scale, _), group in members.items()
        if group
    ]


def _wants_ours(
    config: OptimizerConfig,
    precision: PrecisionConfig,
    parameters: Mapping[str, Tensor],
    *,
    is_native: bool,
) -> bool:
    """Whether `MixedAdamW` updates: on request; where moments or gradients are bf16, which the
    others don't take; and by itself on CUDA over main params, whose copies it writes too."""
    if config.implementation == "compiled" or "bf16" in (config.state_dtype, precision.gradients):
        return True
    are_plain = not any(isinstance(parameter, DTensor) for parameter in parameters.values())
    are_masters = is_native and are_plain and precision.compute != "fp32"
    return config.implementation == "auto" and are_masters and _on_cuda(parameters)


def _on_cuda(parameters: Mapping[str, Tensor]) -> bool:
    return all(parameter.is_cuda for parameter in parameters.values())


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
