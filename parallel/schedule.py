"""Forward and backward passes over the micro-batches of a step, on the parts of one process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from triax.common.tokens import IGNORE_INDEX
from triax.models.layers.loss import LossSums
from triax.models.layers.transformer import Transformer
from triax.parallel.engine import MicroBatch
from triax.parallel.zero import free_gathered, set_micro_batch


class Inputs(NamedTuple):
    """One micro-batch on the device; see `Transformer.forward`."""

    tokens_BT: Tensor
    targets_BT: Tensor
    document_ids_BT: Tensor | None

    @staticmethod
    def on(device: torch.device, batch: MicroBatch) -> Inputs:
        """Begin to copy a micro-batch to the device; nobody waits for it."""
        ids = batch.document_ids_BT
        return Inputs(
            batch.tokens_BT.to(device, non_blocking=True),
            batch.targets_BT.to(device, non_blocking=True),
            None if ids is None else ids.to(device, non_blocking=True),
        )


def num_targets(micro_batches: Sequence[MicroBatch], device: torch.device) -> Tensor:
    """This process's target tokens; int64 scalar on the device."""
    counts = [(batch.targets_BT != IGNORE_INDEX).sum() for batch in micro_batches]
    # A blocking copy would wait for all that the device still has to do.
    return torch.stack(counts).sum().to(device, non_blocking=True)


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


class Schedule(Protocol):
    """Runs the model over micro-batches."""

    def forward_backward(self, micro_batches: Sequence[Inputs], weight: Tensor) -> Tensor:
        """Accumulate reduced gradients; returns the cross entropy sum of this process's
        micro-batches (fp64 scalar), 0 on processes without the head."""

    def forward(self, micro_batches: Sequence[Inputs]) -> Tensor:
        """The cross entropy sum (fp64 scalar) without gradients, 0 on processes without the
        head."""


class NoPipelining:
    """The passes of a process that holds the whole depth of the model.

    Args:
        model: spread by `parallelize`.
        zero_stage: when gradients are reduced and parameters freed.
    """

    def __init__(self, model: Transformer, zero_stage: int) -> None:
        self._model = model
        self._zero_stage = zero_stage

    def forward_backward(self, micro_batches: Sequence[Inputs], weight: Tensor) -> Tensor:
        cross_entropy = torch.zeros_like(weight, dtype=torch.float64)
        for number, inputs in enumerate(micro_batches, start=1):
            set_micro_batch(self._model, self._zero_stage, is_last=number == len(micro_batches))
            sums: LossSums = self._model(*inputs, weight)
            sums.objective.backward()
            cross_entropy += sums.cross_entropy
        return cross_entropy

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Inputs]) -> Tensor:
        weight = torch.ones((), device=micro_batches[0].tokens_BT.device)
        total = weight.double() * 0
        for inputs in micro_batches:
            sums: LossSums = self._model(*inputs, weight)
            total += sums.cross_entropy
        free_gathered(self._model)
        return total
