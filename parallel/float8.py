"""Linear layers that multiply in fp8, with scales made anew from every tensor.

Each of a layer's three products, y = x w^T, dx = dy w and dw = dy^T x, has both factors cast to
fp8 just before it. A tensor's scale comes from its present values, on the device, so there is no
state to save and nothing waits for the host. Source: Micikevicius et al. 2022 (the formats); the
recipes' formats and accumulation are those of torchao's `float8` training.

| recipe | a scale for each | x, w | dy | accumulation |
|---|---|---|---|---|
| tensorwise | tensor | e4m3 | e5m2 | y fast, dx and dw exact |
| rowwise | row of a factor | e4m3 | e4m3 | fast (the kernels are made for it) |

Scales are powers of two: scaling then is exact, so a value is rounded alike whatever its
neighbours are (unless it underflows), and layouts agree though they scale other parts of a batch.

Shape letters: N tokens, D input features, F output features; R rows and K columns of a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.placement_types import Placement

from triax.common.errors import UserError
from triax.models.description import Role
from triax.models.layers.transformer import Transformer

_SMALLEST_PEAK = 2.0**-100
"""Tensors with smaller values are scaled as if this were among them: the scale stays finite."""
_EXPONENT_BITS = -(1 << 23)
"""All bits of an fp32 number but those of its mantissa."""
_NAN_BITS = 0x7FC00000
"""fp32's NaN. The compiler takes equal operations for one, so that query, key and value share a
cast; it would not with NaN among the arguments, which equals nothing."""


@dataclass(frozen=True)
class Recipe:
    """How tensors become fp8."""

    is_rowwise: bool
    gradients: torch.dtype
    """What dy is cast to; x and w become e4m3."""
    exact_gradients: bool
    """Whether dx and dw are accumulated in full precision, which costs speed."""


RECIPES = {
    "tensorwise": Recipe(False, torch.float8_e5m2, exact_gradients=True),
    "rowwise": Recipe(True, torch.float8_e4m3fn, exact_gradients=False),
}
"""By `precision.fp8_recipe`."""


def use_float8(model: Transformer, recipe: str) -> None:
    """Let the blocks' linear layers multiply in fp8; parameters and their names stay.

    Args:
        model: the transformer or a stage of it; it may be split over the tensor axis later.
        recipe: `precision.fp8_recipe`.
    """
    for name, module in list(model.named_modules()):
        if model.description.role_of_module(name) in (Role.COLUMN, Role.ROW):
            assert isinstance(module, nn.Linear)
            model.set_submodule(name, Float8Linear(module, RECIPES[recipe]))


def require_float8(device: torch.device, recipe: str) -> None:
    """Try a product of the smallest size.

    A CPU passes, so that tests and rehearsals run; it is no faster there.

    Raises:
        UserError: the device or this torch can't do it.
    """
    x = torch.ones(16, 16, dtype=torch.bfloat16, device=device, requires_grad=True)
    try:
        float8_linear(x, x, RECIPES[recipe]).sum().backward()
    except RuntimeError as error:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        said = str(error).partition("\n")[0]
        raise UserError(
            f'precision.compute: {name} with torch {torch.__version__} can\'t multiply "fp8" '
            f'({recipe}): NVIDIA GPUs can from compute capability 8.9 (Ada, Hopper) on; use "bf16" '
            f"here ({said})"
        ) from error


@dataclass(frozen=True)
class Scaled:
    """A factor in fp8; its value is `values * unit`."""

    values: Tensor
    """(R, K), rows contiguous."""
    unit: Tensor
    """fp32: () for one scale, (R,) for one a row."""


def to_float8(x_RK: Tensor, dtype: torch.dtype, recipe: Recipe, turned: bool = False) -> Scaled:
    """Cast a factor, scaled such that its largest values come near the format's.

    Whatever is not finite makes the whole scale NaN, so it can't come out of a product as a number.

    Args:
        x_RK: any floating point dtype.
        dtype: an fp8 format.
        recipe: whether rows have scales of their own.
        turned: the factor is `x_RK.T`.
    """
    along_row = 0 if turned else 1
    sizes = x_RK.abs()
    # Of one tensor row by row first: compiled, rows begin where wide loads can, and belong to what
    # else is done with rows.
    peak = (sizes.amax(along_row) if recipe.is_rowwise else sizes.amax(-1).amax()).float()
    bound = torch.finfo(dtype).max / peak.clamp(min=_SMALLEST_PEAK)
    bits = bound.view(torch.int32) & _EXPONENT_BITS
    scale = torch.where(peak.isfinite(), bits, _NAN_BITS).view(torch.float32)
    unit = scale.reciprocal()
    if recipe.is_rowwise:
        scale = scale.unsqueeze(along_row)
    values_RK = (x_RK.float() * scale).to(dtype)
    return Scaled((values_RK.T if turned else values_RK).contiguous(), unit)


def multiply(a: Scaled, b: Scaled, dtype: torch.dtype, *, fast: bool) -> Tensor:
    """`a @ b.T` of factors (R, K) and (S, K), in `dtype`; K and S are multiples of 16.

    Args:
        fast: accumulate with the tensor cores' few bits.
    """
    units = (a.unit, b.unit)
    if a.unit.ndim == 1:
        units = (a.unit.unsqueeze(1), b.unit.unsqueeze(0))
    return torch._scaled_mm(a.values, b.values.T, *units, out_dtype=dtype, use_fast_accum=fast)


class _Float8Linear(torch.autograd.Function):
    """`x @ w.T`. What the backward pass needs again is cast again: where blocks are compiled, the
    compiler keeps what is smaller; else memory is that of plain bf16."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_FD: Tensor, recipe: Recipe) -> Tensor:
        ctx.save_for_backward(x_ND, w_FD)
        ctx.recipe = recipe
        x = to_float8(x_ND, torch.float8_e4m3fn, recipe)
        w = to_float8(w_FD, torch.float8_e4m3fn, recipe)
        return multiply(x, w, x_ND.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        [dy_NF] = grads
        x_ND, w_FD = ctx.saved_tensors
        recipe: Recipe = ctx.recipe
        fast = not recipe.exact_gradients
        dx_ND = dw_FD = None
        if ctx.needs_input_grad[0]:
            dy = to_float8(dy_NF, recipe.gradients, recipe)
            w = to_float8(w_FD, torch.float8_e4m3fn, recipe, turned=True)
            dx_ND = multiply(dy, w, x_ND.dtype, fast=fast)
        if ctx.needs_input_grad[1]:
            dy = to_float8(dy_NF, recipe.gradients, recipe, turned=True)
            x = to_float8(x_ND, torch.float8_e4m3fn, recipe, turned=True)
            dw_FD = multiply(dy, x, w_FD.dtype, fast=fast)
        return dx_ND, dw_FD, None


def float8_linear(x: Tensor, w_FD: Tensor, recipe: Recipe) -> Tensor:
    """`x @ w.T` for x (..., D), in x's dtype; all sizes are multiples of 16."""
    y_NF: Tensor = _Float8Linear.apply(x.flatten(0, -2), w_FD, recipe)  # type: ignore[no-untyped-call]
    y: Tensor = y_NF.unflatten(0, x.shape[:-1])
    return y


class Float8Linear(nn.Linear):
    """Takes the place of a linear layer; on the tensor axis each process scales its own part.

    A class, and not another `forward` for each module: the compiler takes all blocks for one then,
    as it takes plain ones, and not for so many that it gives up on them.
    """

    def __init__(self, linear: nn.Linear, recipe: Recipe) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        y = self._product(x)
        return y if self.bias is None else y + self.bias

    def _product(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not isinstance(weight, DTensor):
            return float8_linear(x, weight, self.recipe)
        assert isinstance(x, DTensor)
        is_column = weight.placements[0].is_shard(0)
        x_grad: Sequence[Placement] = [Partial()] if is_column else [Shard(x.ndim - 1)]
        own = float8_linear(x.to_local(grad_placements=x_grad), weight.to_local(), self.recipe)
        y: Sequence[Placement] = [Shard(own.ndim - 1)] if is_column else [Partial()]
        return DTensor.from_local(own, weight.device_mesh, y, run_check=False)
