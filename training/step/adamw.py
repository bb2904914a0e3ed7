"""AdamW over fp32 weights whose moments or gradients may be bf16, which torch's kernels don't take,
and which writes the bf16 weights that the model computes with, which they don't.

The update of one tensor is a function of plain tensors. On CUDA a whole group's is compiled, and
reads and writes everything once; elsewhere it runs as it stands, a stretch of elements at a time.

Shape letters: E elements of a stretch, P parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from triax.parallel.flat_shards import local_tensor

_STRETCH = 1 << 24
"""Elements updated at a time: uncompiled, this bounds the memory of what lies between."""


class Part(NamedTuple):
    """What the update of one parameter, or of a stretch of it, reads and writes."""

    weight_E: Tensor
    """fp32."""
    gradient_E: Tensor
    """Any floating point dtype."""
    first_E: Tensor
    """A moment; bf16 is rounded stochastically."""
    second_E: Tensor
    copy_E: Tensor | None
    """Gets the new weights in its dtype."""
    step: Tensor
    """fp32 scalar, this update counted."""
    first_share: Tensor
    """fp32 scalar, 1 - beta^step: what the first moment is of an unbiased one."""
    second_share: Tensor
    chance: Tensor
    """int32 scalar, another one for every parameter."""
    begin: int
    """Where in the parameter the stretch begins."""


class MixedAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with moments of a dtype of its own.

    Like torch's fused optimizers it reads two attributes, scalars on the device: `grad_scale`,
    which gradients are divided by, and `found_inf`, which leaves all as it is where it isn't 0.
    A third, `copies`, are tensors by parameter that are given its new values in their own dtype.
    The state of a parameter has torch's names: `step`, `exp_avg`, `exp_avg_sq`.

    Moments in bf16 are rounded up or down stochastically, in proportion to how near each is.
    Rounded to the nearest, a second moment would stand still as soon as a step changed it by less
    than one in 512, as every step does from `betas[1] = 0.998` on. Chance is a function of step,
    parameter and element, so a resumed run draws the same, and so do replicas.

    Args:
        groups: dictionaries with `params` and `weight_decay`. A group is compiled as one, and once
            for all groups of the same shapes.
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
        self._is_compiled = all(p.is_cuda for group in self.param_groups for p in group["params"])
        self._update: Callable[..., None] = update_parts
        if self._is_compiled:
            self._update = torch.compile(update_parts, dynamic=False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        parameters = [p for group in self.param_groups for p in group["params"]]
        device = parameters[0].device
        # Filled on the device: nothing is copied, nobody waits. A plain number that changes would
        # be compiled anew.
        scale = torch.ones((), device=device) if self.grad_scale is None else self.grad_scale
        skip = torch.zeros((), device=device) if self.found_inf is None else self.found_inf
        rates = {group["lr"] for group in self.param_groups}
        lr_of = {rate: torch.full((), rate, device=device) for rate in rates}
        whole = self._whole_parts(parameters, 1 - skip)
        for group in self.param_groups:
            parts = list(itertools.islice(whole, len(group["params"])))
            if not self._is_compiled:
                parts = [stretch for part in parts for stretch in _stretches(part)]
            self._update(
                parts, lr_of[group["lr"]], scale, skip,
                betas=self.defaults["betas"], eps=self.defaults["eps"],
                weight_decay=group["weight_decay"],
            )  # fmt: skip

    @torch.no_grad()
    def make_state(self) -> None:
        """Make what the first step would make: zeros, so that a checkpoint can be read into it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(parameter, dtype=self._state_dtype)
        return state

    def _whole_parts(self, parameters: Sequence[Tensor], counted: Tensor) -> Iterator[Part]:
        """The parameters' own elements with all that belongs to them, this step counted."""
        states = [self._state_of(parameter) for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, [counted] * len(steps))
        steps_P = torch.stack(steps)
        first_P, second_P = (1 - beta**steps_P for beta in self.defaults["betas"])
        chance_P = torch.arange(len(steps), dtype=torch.int32, device=counted.device)
        scalars = zip(steps, first_P.unbind(), second_P.unbind(), chance_P.unbind(), strict=True)
        for parameter, state, (step, first, second, chance) in zip(
            parameters, states, scalars, strict=True
        ):
            assert parameter.grad is not None
            copy = self.copies.get(parameter)
            yield Part(
                _flat(parameter), _flat(parameter.grad),
                _flat(state["exp_avg"]), _flat(state["exp_avg_sq"]),
                None if copy is None else _flat(copy), step, first, second, chance, 0,
            )  # fmt: skip


def update_parts(
    parts: Sequence[Part],
    lr: Tensor,
    scale: Tensor,
    skip: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW's update in place, computed in fp32.

    Args:
        parts: what to update.
        lr: fp32 scalar.
        scale: fp32 scalar that gradients are divided by.
        skip: fp32 scalar; nothing changes where it isn't 0.
    """
    for part in parts:
        gradient = part.gradient_E.float() / scale
        first = part.first_E.float().lerp(gradient, 1 - betas[0])
        second = part.second_E.float().lerp(gradient.square(), 1 - betas[1])
        decayed = part.weight_E * (1 - lr * weight_decay)
        size = (second / part.second_share).sqrt() + eps
        weight = decayed - lr * (first / part.first_share) / size
        bits = random_bits(part.weight_E.numel(), part.step, part.chance, part.begin)
        _store(part.first_E, first, bits & 0xFFFF, skip)
        _store(part.second_E, second, (bits >> 16) & 0xFFFF, skip)
        weight = torch.where(skip > 0, part.weight_E, weight)
        if part.copy_E is not None:
            part.copy_E.copy_(weight)
        part.weight_E.copy_(weight)


def _store(target_E: Tensor, values_E: Tensor, low_bits_E: Tensor, skip: Tensor) -> None:
    if target_E.dtype == torch.bfloat16:
        values_E = round_stochastically(values_E, low_bits_E)
    target_E.copy_(torch.where(skip > 0, target_E, values_E.to(target_E.dtype)))


def round_stochastically(values_E: Tensor, low_bits_E: Tensor) -> Tensor:
    """fp32 values rounded to ones that bf16 holds: up with the share of the gap that lies below.

    Args:
        low_bits_E: int32 numbers from 0 to 65535, evenly drawn.
    """
    rounded_E = ((values_E.view(torch.int32) + low_bits_E) & -65536).view(torch.float32)
    # A NaN of all bits would become a zero.
    return torch.where(values_E.isnan(), values_E, rounded_E)


def random_bits(count: int, step: Tensor, chance: Tensor, begin: int = 0) -> Tensor:
    """int32 numbers, a hash of (step, chance, place): Wellons' "lowbias32" (2018)."""
    bits = torch.arange(begin, begin + count, dtype=torch.int32, device=step.device)
    for part in (chance, step.to(torch.int32)):
        bits = bits ^ (part * -1640531535)  # 2^32 / golden ratio: neighbours lie far apart
        bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
        bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * -2073254261
        bits = bits ^ ((bits >> 16) & 0xFFFF)
    return bits


def _flat(tensor: Tensor) -> Tensor:
    """This process's elements of a tensor.

    Detached: a view of a parameter would lead the compiler to its gradient, of whatever dtype.
    """
    return local_tensor(tensor).detach().view(-1)


def _stretches(part: Part) -> Iterator[Part]:
    """A whole parameter's part, divided."""
    count = part.weight_E.numel()
    for begin in range(0, count, _STRETCH):
        here = slice(begin, begin + _STRETCH)
        yield part._replace(
            weight_E=part.weight_E[here],
            gradient_E=part.gradient_E[here],
            first_E=part.first_E[here],
            second_E=part.second_E[here],
            copy_E=None if part.copy_E is None else part.copy_E[here],
            begin=begin,
        )
