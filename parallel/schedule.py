"""Forward and backward passes over the micro-batches of a step, on the parts of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from triax.models.batch import Batch
from triax.models.layers.output import Output, Shape
from triax.models.layers.transformer import Transformer
from triax.parallel.zero import free_gathered, set_micro_batch

_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention_kernels(preferred: Sequence[str]) -> AbstractContextManager[None]:
    """While it is entered, attention takes the first of these kernels that can do it.

    The last resort is "math", which takes everything: not every kernel takes masks, or is there on
    a CPU. Blocks that are compiled meanwhile keep their choice.
    """
    kernels = [_KERNELS[name] for name in dict.fromkeys((*preferred, "math"))]
    context: AbstractContextManager[None] = sdpa_kernel(kernels, set_priority=True)
    return context


class Part(NamedTuple):
    """A pipeline stage of the model; the whole model where there is no pipeline."""

    stage: int
    module: Transformer


class Totals:
    """Sums over the passes of one process, by the names of `Transformer.sum_shapes`; fp64.

    What another process's pipeline stage hands up stays 0.
    """

    def __init__(self, shapes: Mapping[str, Shape], device: torch.device) -> None:
        self.sums = {
            name: torch.zeros(shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }

    def add(self, output: Output) -> None:
        """Count one micro-batch's output."""
        for name, value in output.sums.items():
            self.sums[name] += value


class Evaluated(NamedTuple):
    """What passes without gradients give."""

    sums: dict[str, Tensor]
    """As in `Totals`."""
    log_probs: list[Tensor]
    """The targets' log-probabilities, (B, T) of every micro-batch; empty on a process without the
    head."""


class Schedule(Protocol):
    """Runs the model over micro-batches."""

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> dict[str, Tensor]:
        """Accumulate reduced gradients; returns the sums of this process, as in `Totals`."""

    def forward(self, micro_batches: Sequence[Batch]) -> Evaluated:
        """Run the model without gradients."""


class NoPipelining:
    """The passes of a process that holds the whole depth of the model.

    Args:
        model: spread by `parallelize`.
        zero_stage: when gradients are reduced and parameters freed.
    """

    def __init__(self, model: Transformer, zero_stage: int) -> None:
        self._model = model
        self._zero_stage = zero_stage

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> dict[str, Tensor]:
        totals = Totals(self._model.sum_shapes, weight.device)
        for number, batch in enumerate(micro_batches, start=1):
            set_micro_batch(self._model, self._zero_stage, is_last=number == len(micro_batches))
            output: Output = self._model(batch.tokens_BT, batch, weight)
            output.x.backward()
            totals.add(output)
        return totals.sums

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Batch]) -> Evaluated:
        weight = torch.ones((), device=micro_batches[0].tokens_BT.device)
        totals, log_probs = Totals(self._model.sum_shapes, weight.device), []
        for batch in micro_batches:
            output: Output = self._model(batch.tokens_BT, batch, weight)
            totals.add(output)
            assert output.log_probs_BT is not None
            log_probs.append(output.log_probs_BT)
        free_gathered(self._model)
        return Evaluated(totals.sums, log_probs)
