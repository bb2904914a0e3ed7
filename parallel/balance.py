"""The load of experts over a step: counted on all processes, and what routers do about it.

Shape letters: L layers with experts, E experts, S sums of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.router import Router, Sums
from triax.parallel.schedule import Part


class Balance:
    """Sums of all routers over the micro-batches of a step and over all processes.

    Args:
        model: with layers that have experts.
        parts: this process's, which have some of them.
        mesh: from `build_mesh`.
    """

    def __init__(self, model: ModelConfig, parts: Sequence[Part], mesh: DeviceMesh) -> None:
        layers = describe(model).architecture.layers
        numbers = [n for n, layer in enumerate(layers) if isinstance(layer.feed_forward, Experts)]
        self._routers: dict[int, Router] = {}
        for part in parts:
            for number, block in part.module.blocks.items():
                if isinstance(block.mlp, MixtureOfExperts):
                    self._routers[numbers.index(int(number))] = block.mlp.router
        first = layers[numbers[0]].feed_forward
        assert isinstance(first, Experts)
        self._num_experts, self._rate = first.num_experts, first.router.bias_rate
        self._tensor_size = mesh["tensor"].size()
        shape = (len(numbers), Sums.count(self._num_experts))
        self._totals_LS = torch.zeros(shape, dtype=torch.float64, device=mesh.device_type)
        for row, router in self._routers.items():
            router.totals = self._totals_LS[row]

    def begin(self) -> None:
        """Forget the last step's sums."""
        self._totals_LS.zero_()

    def reduce(self) -> None:
        """Add up the sums of all processes. Collective."""
        self._totals_LS /= self._tensor_size
        dist.all_reduce(self._totals_LS)

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Let routers know the step's load, unless `skip` (fp32 scalar) is 1."""
        counts_LE = Sums.of(self._totals_LS, self._num_experts).counts_E
        mean_L1 = counts_LE.mean(dim=1, keepdim=True)
        is_known_L1 = (mean_L1 > 0) & (skip == 0)
        load_LE = (counts_LE / mean_L1).float()
        change_LE = (mean_L1 - counts_LE).sign().float() * self._rate
        for row, router in self._routers.items():
            if router.load is not None:
                router.load.copy_(torch.where(is_known_L1[row], load_LE[row], router.load))
            if router.bias is not None:
                router.bias += torch.where(is_known_L1[row], change_LE[row], 0.0)


def make_balance(model: ModelConfig, parts: Sequence[Part], mesh: DeviceMesh) -> Balance | None:
    """None for a model without experts."""
    layers = describe(model).architecture.layers
    has_experts = any(isinstance(layer.feed_forward, Experts) for layer in layers)
    return Balance(model, parts, mesh) if has_experts else None
