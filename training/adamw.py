"""AdamW over fp32 weights whose moments or gradients may be bf16, which torch's kernels don't take,
and which writes the bf16 weights that the model computes with, which they don't.

The update of a stretch of elements is one function of plain tensors. On CUDA it is compiled into
one kernel, which reads and writes everything once; elsewhere it runs as it stands.

Shape letter: E elements of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

_STRETCH = 1 << 24
"""Elements updated at a time: uncompiled, this bounds the memory of what lies between."""


class MixedAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with moments of a dtype of its own.

    Like torch's fused optimizers it reads two attributes, scalars on the device: `grad_scale`,
    which gradients are divided by, and `found_inf`, which leaves all as it is where it isn't 0.
    A third, `copies`, are tensors by parameter that are given its new values in their own dtype.
    The state of a parameter has torch's names: `step`, `exp_avg`, `exp_avg_sq`.

    Moments in bf16 are rounded up or down by chance, in proportion to how near each is. Rounded to
    the nearest, a second moment would stand still as soon as a step changed it by less than one in
    512, as every step does from `betas[1] = 0.998` on. Chance is a function of step, parameter
    and element, so a resumed run draws the same, and so do replicas.

    Args:
        groups: dictionaries with `params` and `weight_decay`.
        lr: learning rate.
        betas, eps: of Adam.
        state_dtype: of the moments.
    """

    _step_supports_amp_scaling = True
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    copies: Mapping[Tensor, Tensor] = MappingProxyType({})

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        state_dtype: torch.dtype,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._state_dtype = state_dtype
        self._update: Callable[..., None] = update_stretch
        if all(p.is_cuda for group in self.param_groups for p in group["params"]):
            self._update = torch.compile(update_stretch, dynamic=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step_one(parameter, group, number)
                number += 1

    def _step_one(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        state, device = self.state[parameter], parameter.device
        if not state:
            state["step"] = torch.zeros((), device=device)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(parameter, dtype=self._state_dtype)
        one = torch.ones((), device=device)
        scale = one if self.grad_scale is None else self.grad_scale
        skip = one * 0 if self.found_inf is None else self.found_inf
        state["step"] += 1 - skip
        assert parameter.grad is not None
        tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        stretches: list[Sequence[Tensor | None]] = [_stretches(tensor) for tensor in tensors]
        copy = self.copies.get(parameter)
        stretches.append([None] * len(stretches[0]) if copy is None else _stretches(copy))
        lr = torch.full((), group["lr"], device=device)  # a number would compile anew when it moves
        for place, stretch in enumerate(zip(*stretches, strict=True)):
            chance = torch.full((), number * 1009 + place, dtype=torch.int32, device=device)
            self._update(
                *stretch, state["step"], lr, scale, skip, chance,
                betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"],
            )  # fmt: skip


def update_stretch(
    weight_E: Tensor,
    gradient_E: Tensor,
    first_E: Tensor,
    second_E: Tensor,
    copy_E: Tensor | None,
    step: Tensor,
    lr: Tensor,
    scale: Tensor,
    skip: Tensor,
    chance: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW's update of some elements, in place, computed in fp32.

    Args:
        weight_E: fp32.
        gradient_E: any floating point dtype; divided by `scale`.
        first_E, second_E: the moments; bf16 ones are rounded by chance.
        copy_E: gets the new weights in its dtype.
        step, lr, scale, skip: fp32 scalars; the step is counted already, 1 in `skip` skips.
        chance: int32 scalar, another one for every stretch of a step.
    """
    gradient = gradient_E.float() / scale
    first = first_E.float().lerp(gradient, 1 - betas[0])
    second = second_E.float().lerp(gradient.square(), 1 - betas[1])
    first_unbiased = first / (1 - betas[0] ** step)
    second_unbiased = second / (1 - betas[1] ** step)
    decayed = weight_E * (1 - lr * weight_decay)
    weight = decayed - lr * first_unbiased / (second_unbiased.sqrt() + eps)
    bits = random_bits(weight_E.numel(), step, chance)
    _store(first_E, first, bits & 0xFFFF, skip)
    _store(second_E, second, (bits >> 16) & 0xFFFF, skip)
    weight = torch.where(skip > 0, weight_E, weight)
    if copy_E is not None:
        copy_E.copy_(weight)
    weight_E.copy_(weight)


def _store(target_E: Tensor, values_E: Tensor, low_bits_E: Tensor, skip: Tensor) -> None:
    if target_E.dtype == torch.bfloat16:
        values_E = round_by_chance(values_E, low_bits_E)
    target_E.copy_(torch.where(skip > 0, target_E, values_E.to(target_E.dtype)))


def round_by_chance(values_E: Tensor, low_bits_E: Tensor) -> Tensor:
    """fp32 values rounded to ones that bf16 holds: up with the share of the gap that lies below.

    Args:
        low_bits_E: int32 numbers from 0 to 65535, evenly drawn.
    """
    return ((values_E.view(torch.int32) + low_bits_E) & -65536).view(torch.float32)


def random_bits(count: int, step: Tensor, chance: Tensor) -> Tensor:
    """int32 numbers, a hash of (step, chance, place): Wellons' "lowbias32" (2018)."""
    bits = torch.arange(count, dtype=torch.int32, device=step.device)
    for part in (chance, step.to(torch.int32)):
        bits = bits ^ (part * -1640531535)  # 2^32 / golden ratio: neighbours lie far apart
        bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
        bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * -2073254261
        bits = bits ^ ((bits >> 16) & 0xFFFF)
    return bits


def _stretches(tensor: Tensor) -> Sequence[Tensor]:
    """This process's part of a tensor, as views of so many elements."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.view(-1).split(_STRETCH)
