"""The initial weights of a spread model: each process makes its part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.init import initialise


def initialise_parts(parameters: Mapping[str, Tensor], model: ModelConfig, seed: int) -> None:
    """Fill this process's parts of parameters, plain ones or DTensors, by name."""
    table = describe(model).parameters
    for name, parameter in parameters.items():
        local, offset = local_part(parameter)
        initialise(local, table[name], offset, seed)


def local_part(parameter: Tensor) -> tuple[Tensor, Sequence[int]]:
    """This process's part of a parameter, and where in the parameter it begins."""
    if not isinstance(parameter, DTensor):
        return parameter, [0] * parameter.ndim
    _, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return parameter.to_local(), offset
