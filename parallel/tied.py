"""Tied embeddings across a pipeline: one weight that its first and its last stage use.

The first stage's embedding is the weight; the optimizer, the norm and checkpoints see it alone.
The last stage's head follows: it gets the weight before the passes of a step, and gives its
gradient away after them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triax.models.config import ModelConfig
from triax.parallel.config import ParallelConfig
from triax.parallel.flat_shards import local_tensor
from triax.parallel.schedule import Part
from triax.parallel.stages import num_stages, rank_of_stage


class TiedHead:
    """Keeps a pipeline's head equal to its embedding.

    Args:
        embedding: the embedding's weight, on the process with the first stage.
        head: the head's weight, on the process with the last stage; perhaps the same process.
        mesh: from `build_mesh`.
        first_rank: the rank on the pipeline axis that holds the first stage.
        last_rank: the one that holds the last stage.
    """

    def __init__(
        self,
        embedding: Tensor | None,
        head: Tensor | None,
        mesh: DeviceMesh,
        first_rank: int,
        last_rank: int,
    ) -> None:
        self._embedding = embedding
        self._head = head
        self._group = mesh["pipeline"].get_group()
        self._first_rank = first_rank
        self._last_rank = last_rank

    @torch.no_grad()
    def follow(self) -> None:
        """Give the head the embedding's present weight."""
        self._move(_local(self._embedding), _local(self._head), self._first_rank, self._last_rank)

    @torch.no_grad()
    def give_gradient(self) -> None:
        """Add the head's gradient to the embedding's, and drop it."""
        self.add_gradient(
            None if self._embedding is None else _local(self._embedding.grad),
            None if self._head is None else _local(self._head.grad),
        )
        if self._head is not None:
            self._head.grad = None

    @torch.no_grad()
    def add_gradient(self, ours: Tensor | None, theirs: Tensor | None) -> None:
        """Add the head's local gradient to the embedding's, each None where the other stage is."""
        arrived = None if ours is None else torch.empty_like(ours)
        self._move(theirs, arrived, self._last_rank, self._first_rank)
        if ours is not None and arrived is not None:
            ours += arrived

    def _move(
        self, source: Tensor | None, target: Tensor | None, from_rank: int, to_rank: int
    ) -> None:
        if source is not None and target is not None:
            target.copy_(source)
        elif source is not None:
            dist.send(source, group=self._group, group_dst=to_rank)
        elif target is not None:
            dist.recv(target, group=self._group, group_src=from_rank)


def tied_head(
    model: ModelConfig, mesh: DeviceMesh, config: ParallelConfig, parts: Sequence[Part]
) -> TiedHead | None:
    """What keeps the head and the embedding of different stages equal, if they are to be."""
    if not model.tie_embeddings or config.pipeline == 1:
        return None
    embedding = next((p.module.embedding for p in parts if p.module.embedding is not None), None)
    head = next((p.module.head for p in parts if p.module.head is not None), None)
    return TiedHead(
        None if embedding is None else embedding.weight,
        None if head is None else head.weight,
        mesh,
        first_rank=rank_of_stage(0, config),
        last_rank=rank_of_stage(num_stages(config) - 1, config),
    )


def _local(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else local_tensor(tensor)
