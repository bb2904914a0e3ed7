"""What passes amount to over all processes; collective.

The processes of the tensor axis have the same sums, so each counts for its share of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from triax.models.batch import Batch
from triax.models.layers.transformer import Transformer
from triax.parallel.engine import EvaluationSums, StepSums
from triax.parallel.reading import own_counts
from triax.parallel.schedule import Evaluated


def step_sums(
    sums: dict[str, Tensor], squared_norm: Tensor, weight: Tensor, tensor_size: int
) -> StepSums:
    """The sums of a step; one all-reduce in fp64.

    Args:
        sums: of this process's passes, see `Totals`.
        squared_norm: of the part of the gradient that it answers for; fp64 scalar.
        weight: of the objective.
        tensor_size: processes of the tensor axis.
    """
    own = dict(sums)
    objective, cross_entropy = own.pop("objective"), own.pop("cross_entropy")
    extras = [value.flatten() / tensor_size for value in own.values()]
    reduced = torch.cat((torch.stack((cross_entropy / tensor_size, squared_norm)), *extras))
    dist.all_reduce(reduced)
    of_all = reduced[2:].float().split([value.numel() for value in own.values()])
    return StepSums(
        reduced[0].float(),
        reduced[1].sqrt().float(),
        torch.stack((objective, cross_entropy, weight)).isfinite().all().float(),
        {name: x.view(own[name].shape) for name, x in zip(own, of_all, strict=True)},
    )


def evaluation_sums(
    evaluated: Evaluated, batches: Sequence[Batch], tensor_size: int, num_readers: int
) -> EvaluationSums:
    """The sums of a validation.

    Args:
        evaluated: what this process's passes gave.
        batches: what they read.
        tensor_size: processes of the tensor axis.
        num_readers: processes that read the same.
    """
    cross_entropy = evaluated.sums["cross_entropy"] / tensor_size
    counts = own_counts(batches, cross_entropy.device) / num_readers
    totals = torch.cat((cross_entropy[None], counts))
    dist.all_reduce(totals)
    return EvaluationSums(totals[0], totals[1].round(), totals[2])


def shared_log_probs(
    evaluated: Evaluated, batches: Sequence[Batch], group: dist.ProcessGroup, group_rank: int
) -> list[Tensor]:
    """The targets' log-probabilities on all processes of a pipeline.

    Args:
        evaluated: what this process's passes gave.
        batches: what they read, on the device.
        group: of the pipeline axis.
        group_rank: who holds the head.
    """
    if dist.get_world_size(group) == 1:
        return evaluated.log_probs
    shapes = [batch.targets_BT.shape for batch in batches]
    if evaluated.log_probs:
        flat = torch.cat([values.flatten() for values in evaluated.log_probs])
    else:
        num_tokens = sum(shape.numel() for shape in shapes)
        flat = torch.empty(num_tokens, device=batches[0].targets_BT.device)
    dist.broadcast(flat, group=group, group_src=group_rank)
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


@contextmanager
def telling_likeliest(parts: Iterable[Transformer]) -> Iterator[None]:
    """Within it the loss tells the likeliest token at each target instead of the target's
    log-probability: so what brings the latter to all processes brings the former."""
    heads = [part.head for part in parts if part.head is not None]
    before = [head.options for head in heads]
    try:
        for head in heads:
            head.options = replace(head.options, tells_likeliest=True)
        yield
    finally:
        for head, options in zip(heads, before, strict=True):
            head.options = options
