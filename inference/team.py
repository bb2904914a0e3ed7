"""The processes that use a model together: who holds which part of it, and who does what.

Some processes hold one copy of the weights between them, and work on the same texts; each such
group has its share of all texts. A single process is a team of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh

A = TypeVar("A")
B = TypeVar("B")
Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True)
class Team:
    """This process among those that use a model."""

    device: torch.device
    config: ParallelConfig
    """Its `tensor`, and its `zero_stage`: 0 or 3."""
    mesh: DeviceMesh | None = None
    """None for one process alone, which needs no process group."""
    group: dist.ProcessGroup | None = None
    """Of all, for what lies on the host; None for one process alone."""

    @staticmethod
    def alone() -> Team:
        """One process, on the GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Team(device, team_config(1, shards=False))

    @staticmethod
    def of(
        device: torch.device, group: dist.ProcessGroup, *, tensor: int = 1, shards: bool = False
    ) -> Team:
        """All processes of the default process group.

        Args:
            device: this process's.
            group: of the CPU, over all of them.
            tensor: processes that divide each layer.
            shards: whether all share the weights, and gather a layer when it is needed (ZeRO-3).

        Raises:
            UserError: `tensor` doesn't divide their number.
        """
        config, size = team_config(tensor, shards=shards), dist.get_world_size()
        if size % tensor:
            raise UserError(f"--tensor {tensor} does not divide the {size} processes")
        return Team(device, config, build_mesh(Layout.of(config, size), device.type), group)

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that talks and writes."""
        return self.rank == 0

    @property
    def num_shares(self) -> int:
        """Into how many parts work is divided: a group that shares its weights takes one."""
        if self.group is None or self.config.zero_stage == 3:
            return 1
        return dist.get_world_size(self.group) // self.config.tensor

    @property
    def data_place(self) -> tuple[int, int]:
        """Which part of an engine's batches this process reads, and of how many."""
        if self.mesh is None:
            return 0, 1
        layout = Layout.of(self.config, self.mesh.size())
        return layout.data_rank(self.rank), layout.data_parallel

    def refuse_indivisible(self, model: ModelConfig, where: object) -> None:
        """A model whose layers the team can't divide.

        Raises:
            UserError: it is one.
        """
        widths = describe(model).widths()
        divided = {f"its {width.fields[0]}": width.num_units for width in widths}
        divided["its vocab_size"] = model.vocab_size
        for name, size in divided.items():
            if size % self.config.tensor:
                raise UserError(
                    f"{where}: {name}, {size}, is not a multiple of --tensor {self.config.tensor}: "
                    "choose a divisor of it, or --shard"
                )
        layers = describe(model).architecture.layers
        if self.config.tensor > 1 and any(one.attention.norms_heads_jointly for one in layers):
            raise UserError(
                f"{where}: normalises all heads of a token together (joint_qk_norm), and --tensor "
                "divides them: use --shard"
            )

    def agree(self, *tensors: Tensor) -> None:
        """Make tensors on the device, in place, those of the first process that works on the same
        texts: what is drawn must not differ in the last bit."""
        if self.mesh is None or self.num_shares == dist.get_world_size(self.group):
            return
        shares_all = self.config.zero_stage == 3
        group = None if shares_all else self.mesh["tensor"].get_group()
        for tensor in tensors:
            dist.broadcast(tensor, group=group, group_src=0)

    def divide(self, work: Sequence[A], do: Callable[[Sequence[A]], list[B]]) -> list[B]:
        """Do the work, each group its share; all of the results, in order, on every process.

        Args:
            work: the same on all processes.
            do: a result for each.
        """
        if self.group is None:
            return do(work)
        count, group_size = self.num_shares, dist.get_world_size(self.group) // self.num_shares
        own = do(work[self.rank // group_size :: count])
        of_all: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(of_all, own, group=self.group)
        shares = of_all[::group_size]
        return [shares[number % count][number // count] for number in range(len(work))]

    def summed(self, own: NDArray[Number]) -> NDArray[Number]:
        """The sum over the parts that `data_place` tells of; the same bits on every process."""
        if self.group is None:
            return own
        of_all: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(of_all, own, group=self.group)
        total: NDArray[Number] = sum(of_all[:: self.config.tensor])
        return total

    def tell(self, value: A) -> A:
        """What the main process says, on all of them."""
        if self.group is None:
            return value
        said: list[Any] = [value]
        dist.broadcast_object_list(said, group=self.group, group_src=0)
        told: A = said[0]
        return told


def team_config(tensor: int, *, shards: bool) -> ParallelConfig:
    """How a model is spread to be used."""
    return ParallelConfig(zero_stage=3 if shards else 0, tensor=tensor, sequence_parallel=False)
