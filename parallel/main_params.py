"""fp32 weights behind a model that computes in fewer bits, on a process that shares none of them.

FSDP2 would do: it gathers from itself, casts, and reduces to itself, which moves every weight and
gradient several times a step for nothing. Here weights are cast once a step, and gradients stay
where autograd puts them: in the compute dtype, if nothing is to be added to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn


class MainParams:
    """What the optimizer updates, and checkpoints hold, instead of the model's own weights.

    Args:
        weights: the model's, by name, in the compute dtype, on the device.
        followers: weights that have gradients and no master: a tied head on another stage.
        gradient_dtype: what gradients are added up in.
        used_twice: names of weights that get two gradients from each micro-batch.

    Attributes:
        parameters: fp32, by the same names; not initialised.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        followers: Iterable[Tensor],
        gradient_dtype: torch.dtype,
        used_twice: Collection[str] = (),
    ) -> None:
        self._weights = weights
        self._gradient_dtype = gradient_dtype
        # Vectors' gradients may come in more bits than the compute dtype has.
        self._used_once = [w for n, w in weights.items() if w.ndim > 1 and n not in used_twice]
        self._are_summed = True
        for weight in (*weights.values(), *followers):
            weight.grad_dtype = gradient_dtype
        self.parameters: dict[str, Tensor] = {
            name: nn.Parameter(torch.empty_like(weight, dtype=torch.float32))
            for name, weight in weights.items()
        }
        for parameter in self.parameters.values():
            parameter.grad_dtype = None  # may differ from fp32

    @property
    def copies(self) -> dict[Tensor, Tensor]:
        """The model's weights by their main params, for an optimizer that writes both."""
        return {self.parameters[name]: weight.detach() for name, weight in self._weights.items()}

    def expect(self, num_micro_batches: int) -> None:
        """Say how many micro-batches' gradients will be added up.

        If nothing is added to it, a gradient stays as it comes out of the matrix product: cast to
        fp32 it would say no more, and would be written and read again for it.
        """
        are_summed = num_micro_batches > 1
        if are_summed == self._are_summed:
            return
        self._are_summed = are_summed
        for weight in self._used_once:
            weight.grad_dtype = self._gradient_dtype if are_summed else weight.dtype

    @torch.no_grad()
    def publish(self) -> None:
        """Give the model the main params' present values."""
        torch._foreach_copy_(list(self._weights.values()), list(self.parameters.values()))

    def take_gradients(self) -> None:
        """Move the model's gradients to the main params."""
        for name, weight in self._weights.items():
            self.parameters[name].grad, weight.grad = weight.grad, None
