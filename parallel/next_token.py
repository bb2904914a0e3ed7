"""What a spread model would write next: the distribution after a prompt that is too long for one
device.

Shape letters: B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from triax.models.batch import Batch
from triax.models.layers.head import Head
from triax.models.layers.loss import capped_logits
from triax.parallel.context.sequence import gathered_parts, stretches_of
from triax.parallel.schedule import Part


class EvaluatingEngine(Protocol):
    """Of an engine, what is needed here."""

    @property
    def parts(self) -> Sequence[Part]:
        """The stages of this process."""

    def evaluate(self, micro_batches: Sequence[Batch]) -> object:
        """Run the model without gradients."""


@torch.no_grad()
def next_log_probs(
    engine: EvaluatingEngine, mesh: DeviceMesh, batches: Sequence[Batch], num_tokens: int
) -> list[Tensor]:
    """The log-probability of every token to follow the first `num_tokens` of each row; collective.

    Rows may be longer, as the layout wants them: what comes after isn't seen.

    Args:
        engine: the native one.
        mesh: from `build_mesh`.
        batches: as for `Engine.evaluate`.

    Returns:
        For each batch fp32 (B, V), on all processes that share its rows.
    """
    found: list[Tensor] = []
    heads = [part.module.head for part in engine.parts if part.module.head is not None]
    handles = [
        head.register_forward_pre_hook(_LogitsAt(num_tokens - 1, mesh, found)) for head in heads
    ]
    try:
        engine.evaluate(batches)
    finally:
        for handle in handles:
            handle.remove()
    model = engine.parts[0].module
    if not heads:
        device = next(model.parameters()).device
        shapes = [(len(batch.tokens_BT), model.config.vocab_size) for batch in batches]
        found = [torch.zeros(shape, device=device) for shape in shapes]
    for logits_BV in found:  # zeros but where the head and the token are
        for axis in ("context", "pipeline"):
            dist.all_reduce(logits_BV, group=mesh[axis].get_group())
    return [logits_BV.log_softmax(-1) for logits_BV in found]


class _LogitsAt:
    """A hook before a head: takes the logits of one place of each row, zeros where that is another
    process's."""

    def __init__(self, place: int, mesh: DeviceMesh, found: list[Tensor]) -> None:
        self._place = place
        self._context, self._tensor = mesh["context"], mesh["tensor"]
        self._found = found

    def __call__(self, head: nn.Module, inputs: tuple[Tensor, Batch, Tensor]) -> None:
        assert isinstance(head, Head)
        h, batch, _ = inputs
        size, num_own = self._context.size(), batch.targets_BT.shape[1]
        mine = stretches_of(self._context.get_local_rank(), size, num_own * size)
        places = [place for stretch in mine for place in stretch]
        if h.shape[1] < num_own:  # sequence parallelism
            first = self._tensor.get_local_rank() * h.shape[1]
            places = places[first : first + h.shape[1]]
        h_BD = torch.zeros_like(h[:, 0])
        if self._place in places:
            h_BD = h[:, places.index(self._place)].contiguous()
        if h.shape[1] < num_own:
            dist.all_reduce(h_BD, group=self._tensor.get_group())
        rows = head.weight
        if not isinstance(rows, DTensor):
            self._found.append(capped_logits(h_BD, rows, head.options.softcap))
            return
        part_BV = capped_logits(h_BD, rows.to_local(), head.options.softcap)
        parts = gathered_parts(part_BV, self._tensor.get_group())
        self._found.append(parts.movedim(0, 1).flatten(1))
