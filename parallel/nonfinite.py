"""Finds the first module of a forward pass whose output is not finite."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn


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
