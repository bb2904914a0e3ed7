"""Finds silent corruption: processes that should hold, or have read, the same and don't."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from triax.parallel.config import ParallelConfig
from triax.parallel.flat_shards import local_parts
from triax.parallel.layout import AXES, DATA_AXES, Layout

Checksums = tuple[int, int]
"""Of the weights and of the optimizer's state that a process holds."""


@torch.no_grad()
def checksums(state: Mapping[str, Tensor]) -> Checksums:
    """Sums of the bits of this process's parts, as integers: one flipped bit changes them.

    Args:
        state: an engine's state; waits for the device once.
    """
    sums: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in state.items():
        sums[name.split(".")[0]] += map(_sum_of_bits, local_parts(tensor))
    weights, optimizer = (_total(sums[kind]) for kind in ("model", "optimizer"))
    return weights, optimizer


def _sum_of_bits(tensor: Tensor) -> Tensor:
    words = torch.int32 if tensor.element_size() % 4 == 0 else torch.uint8
    return tensor.contiguous().view(-1).view(words).sum(dtype=torch.int64)


def _total(sums: list[Tensor]) -> int:
    return int(torch.stack(sums).sum()) if sums else 0


def replica_groups(layout: Layout, config: ParallelConfig) -> list[list[int]]:
    """Ranks that hold the same parts, group by group.

    At ZeRO stage 0 nothing is sharded: processes that divide a sequence are replicas too, and of
    neighbours that divide the experts each has its replicas `config.expert` further on.
    """
    if config.zero_stage:
        return layout.groups("replicate")
    return [
        ranks[first :: config.expert]
        for ranks in layout.groups("replicate", "context")
        for first in range(config.expert)
    ]


def reader_groups(layout: Layout) -> list[list[int]]:
    """Ranks that work on the same samples, group by group."""
    return layout.groups(*(axis for axis in AXES if axis not in DATA_AXES))


def differing_ranks(groups: Sequence[Sequence[int]], found: Sequence[object]) -> list[int]:
    """The ranks whose value differs from the majority of their group's.

    Where there is no majority (in a group of two, say) all of the group are named: one of them is
    wrong, and the values can't say which.

    Args:
        groups: from `replica_groups` or `reader_groups`.
        found: every rank's value.
    """
    wrong: list[int] = []
    for ranks in groups:
        votes = Counter(found[rank] for rank in ranks)
        winner, num_votes = votes.most_common(1)[0]
        if len(votes) > 1:
            has_majority = 2 * num_votes > len(ranks)
            wrong += [rank for rank in ranks if not has_majority or found[rank] != winner]
    return wrong
