"""fp32 weights behind a model that computes in fewer bits, on a process that shares none of them.

FSDP2 would do: it gathers from itself, casts, and reduces to itself, which moves every weight and
gradient several times a step for nothing. Here weights are cast once a step, and gradients stay
where autograd puts them: in the compute dtype, if nothing is to be added to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Masters:
    """What the optimizer updates, and checkpoints hold, instead of the model's own weights.

    Args:
        weights: the model's, by name, in the compute dtype, on the device.
        followers: weights that have gradients and no master: a tied head on another stage.
        gradient_dtype: what gradients are added up over micro-batches in.

    Attributes:
        parameters: fp32, by the same names; not initialised.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        followers: Iterable[Tensor],
        gradient_dtype: torch.dtype,
    ) -> None:
        self._weights = weights
        self._with_gradients = (*weights.values(), *followers)
        self._sum_dtype = gradient_dtype
        self._keep_gradients_in(gradient_dtype)
        self.parameters: dict[str, Tensor] = {
            name: nn.Parameter(torch.empty_like(weight, dtype=torch.float32))
            for name, weight in weights.items()
        }
        for parameter in self.parameters.values():
            parameter.grad_dtype = None  # may differ from fp32

    @property
    def copies(self) -> dict[Tensor, Tensor]:
        """The model's weights by their masters, for an optimizer that writes both."""
        return {self.parameters[name]: weight.detach() for name, weight in self._weights.items()}

    def expect(self, num_contributions: int) -> None:
        """Say how many gradients will be added up into one.

        A single one stays as autograd makes it: cast to fp32 it would say no more, and would be
        written and read twice for it.
        """
        dtype = self._sum_dtype if num_contributions > 1 else self._with_gradients[0].dtype
        if dtype != self._gradient_dtype:
            self._keep_gradients_in(dtype)

    def _keep_gradients_in(self, dtype: torch.dtype) -> None:
        self._gradient_dtype = dtype
        for weight in self._with_gradients:
            weight.grad_dtype = dtype

    @torch.no_grad()
    def publish(self) -> None:
        """Give the model the masters' present values."""
        torch._foreach_copy_(list(self._weights.values()), list(self.parameters.values()))

    def take_gradients(self) -> None:
        """Move the model's gradients to the masters."""
        for name, weight in self._weights.items():
            self.parameters[name].grad, weight.grad = weight.grad, None
