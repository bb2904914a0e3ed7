"""What routers do once a step about the load of their experts over all processes.

Shape letters: E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.router import Router
from triax.parallel.schedule import Part


class Balance:
    """Changes the state of a process's routers, alike on all processes that have the same layer.

    Args:
        parts: this process's; they may have no experts.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._routers: dict[int, Router] = {
            int(number): block.mlp.router
            for part in parts
            for number, block in part.module.blocks.items()
            if isinstance(block.mlp, MixtureOfExperts)
        }
        self._counts: Tensor | None = None

    def learn(self, sums: Mapping[str, Tensor]) -> None:
        """Take the sums of a step over all processes, a row a layer."""
        self._counts = sums.get("expert_tokens")

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Let routers act on the step's load, unless `skip` (fp32 scalar) is 1."""
        if self._counts is None:
            return
        for number, router in self._routers.items():
            counts_E = self._counts[number].double()
            mean = counts_E.mean()
            acts = (mean > 0) & (skip == 0)
            if router.load is not None:
                load_E = (counts_E / mean).to(router.load.dtype)
                router.load.copy_(torch.where(acts, load_E, router.load))
            if router.bias is not None:
                change_E = router.layer.bias_rate * (mean - counts_E).sign()
                router.bias += torch.where(acts, change_E, 0.0)
