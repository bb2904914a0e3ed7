"""Finds values that are not finite: among tensors, and in the modules of a forward pass."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triax.parallel.flat_shards import local_parts


@torch.no_grad()
def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of which this process holds a value that isn't finite.

    Args:
        tensors: plain ones, DTensors or flat shards. Each is read once, and none copied; the host
            waits once for a device.
    """
    held: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors.items():
        for part in local_parts(tensor):
            if part.numel():
                held[part.device].append((name, part))
    broken: set[str] = set()
    for parts in held.values():
        largest = torch._foreach_norm([part for _, part in parts], math.inf)
        finite = torch.stack([value.float() for value in largest]).isfinite().tolist()
        broken |= {name for (name, _), ok in zip(parts, finite, strict=True) if not ok}
    return next((name for name in tensors if name in broken), None)


class NonFiniteFinder:
    """Watches the modules' outputs while it is entered; the host waits for each of them.

    Args:
        model: whose modules are watched; a module is looked at after those within it.

    Attributes:
        first: the name of the first one with a value that is not finite.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.first: str | None = None

    def __enter__(self) -> NonFiniteFinder:
        self._handles = [
            module.register_forward_hook(partial(self._look, name or "the model's loss"))
            for name, module in self._model.named_modules()
        ]
        # Layers that are multiplied as one have no outputs of their own.
        self._joint = {m: vars(m).pop("project") for m in self._model.modules() if _is_joint(m)}
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        for module, project in self._joint.items():
            module.project = project

    def _look(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        if self.first is None and any(
            isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()) for tensor in outputs
        ):
            self.first = name


def _is_joint(module: nn.Module) -> bool:
    return "project" in vars(module)
