"""The native engine: FSDP2 for ZeRO, on gloo and NCCL alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from triax.common.tokens import IGNORE_INDEX
from triax.models.config import ModelConfig
from triax.models.init import initialise
from triax.models.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.engines.protocol import MakeOptimizer, MicroBatch, StepSums
from triax.parallel.spread import spread
from triax.parallel.zero import free_gathered, set_micro_batch


class NativeEngine:
    """An `Engine` over PyTorch's own parallelism; see the protocol for the methods.

    Args:
        model: the transformer's shape.
        mesh: from `build_mesh`; its device type is where the engine computes.
        config: the `[parallel]` section.
        compute: `precision.compute`.
        seed: of the initial weights.
        make_optimizer: builds the optimizer over the sharded parameters.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: DeviceMesh,
        config: ParallelConfig,
        *,
        compute: str,
        seed: int,
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.device = torch.device(mesh.device_type)
        self.zero_stage = config.zero_stage
        self._num_replicas = mesh["replicate"].size()
        with torch.device("meta"):
            self.model = Transformer(model)
        spread(self.model, mesh, config, compute)
        self.model.to_empty(device=self.device)
        if model.tie_embeddings:  # to_empty gives every module a parameter of its own
            self.model.head.weight = self.model.embedding.weight
        self.parameters = dict(self.model.named_parameters())
        for name, parameter in self.parameters.items():
            local, offset = _local_part(parameter)
            initialise(local, name, offset, parameter.shape, model, seed)
        self.optimizer = make_optimizer(self.parameters)
        self._fill_in_optimizer_state()

    def count_targets(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        counts = [(batch.targets_BT != IGNORE_INDEX).sum() for batch in micro_batches]
        total = torch.stack(counts).sum().to(self.device, torch.float32)
        dist.all_reduce(total)
        return total

    def forward_backward(self, micro_batches: Sequence[MicroBatch], weight: Tensor) -> StepSums:
        cross_entropy = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches, start=1):
            set_micro_batch(self.model, self.zero_stage, is_last=number == len(micro_batches))
            sums = self.model(*self._inputs(batch), weight)
            sums.objective.backward()
            cross_entropy += sums.cross_entropy
        return self._reduce(cross_entropy)

    def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
        torch._foreach_mul_(self._local_gradients(), gradient_factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(skip):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        weight = torch.ones((), device=self.device)
        for batch in micro_batches:
            totals[0] += self.model(*self._inputs(batch), weight).cross_entropy
            totals[1] += (batch.targets_BT != IGNORE_INDEX).sum().to(self.device)
        free_gathered(self.model)
        dist.all_reduce(totals)
        return totals[0], totals[1]

    def state(self) -> dict[str, Tensor]:
        tensors = {
            f"model.{name}": parameter.detach() for name, parameter in self.parameters.items()
        }
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def _inputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        ids = batch.document_ids_BT
        return (
            batch.tokens_BT.to(self.device, non_blocking=True),
            batch.targets_BT.to(self.device, non_blocking=True),
            None if ids is None else ids.to(self.device, non_blocking=True),
        )

    def _local_gradients(self) -> list[Tensor]:
        gradients = []
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"{name} got no gradient"
            gradients.append(_local(parameter.grad))
        return gradients

    def _reduce(self, cross_entropy: Tensor) -> StepSums:
        """One all-reduce: every process holds its own samples' loss and its own gradient shard,
        and replicas hold the same shard."""
        norms = torch._foreach_norm(self._local_gradients(), 2, dtype=torch.float32)
        squared_norm = torch.stack(norms).square().sum() / self._num_replicas
        sums = torch.stack((cross_entropy, squared_norm))
        dist.all_reduce(sums)
        return StepSums(sums[0], sums[1].sqrt())

    def _fill_in_optimizer_state(self) -> None:
        """Let the optimizer make its state now, so that a checkpoint can be read into it.

        Optimizers make it in their first step: one is taken with zero gradients at a rate of zero,
        and what it counted is set back.
        """
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.update(0.0, torch.ones((), device=self.device), torch.zeros((), device=self.device))
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local_part(parameter: Tensor) -> tuple[Tensor, Sequence[int]]:
    """This process's part of a parameter, and where in the parameter it begins."""
    if not isinstance(parameter, DTensor):
        return parameter, [0] * parameter.ndim
    _, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return parameter.to_local(), offset
