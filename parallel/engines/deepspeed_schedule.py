"""Forward and backward passes by DeepSpeed, which end where the engine takes over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.schedule import (
    InferenceSchedule,
    OptimizerStep,
    ReduceGrads,
    ReduceTiedGrads,
    TrainSchedule,
)
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from triax.models.batch import Batch
from triax.models.layers.output import Output
from triax.models.layers.transformer import Transformer
from triax.parallel.schedule import Evaluated, Totals
from triax.parallel.tied import TiedHead


class NoPipelining:
    """The passes of a process that holds the whole depth of the model.

    Args:
        engine: DeepSpeed's.
        num_ranks: data-parallel ranks.
    """

    def __init__(self, engine: Any, num_ranks: int) -> None:
        self.engine = engine
        self._num_ranks = num_ranks

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> dict[str, Tensor]:
        totals = Totals(self.engine.module.sum_shapes, weight.device)
        # DeepSpeed averages gradients over the data-parallel ranks; the loss is a global sum.
        weight = weight * self._num_ranks
        for number, batch in enumerate(micro_batches, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            output: Output = self.engine(batch.tokens_BT, batch, weight)
            self.engine.backward(output.x, scale_wrt_gas=False)
            totals.add(output)
            if number < len(micro_batches):
                self.engine.step()  # counts the micro-batch
        return totals.sums

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Batch]) -> Evaluated:
        self.engine.eval()
        weight = torch.ones((), device=micro_batches[0].tokens_BT.device)
        totals, log_probs = Totals(self.engine.module.sum_shapes, weight.device), []
        for batch in micro_batches:
            output: Output = self.engine(batch.tokens_BT, batch, weight)
            totals.add(output)
            assert output.log_probs_BT is not None
            log_probs.append(output.log_probs_BT)
        self.engine.train()
        return Evaluated(totals.sums, log_probs)

    def step(self) -> None:
        """Update the weights."""
        self.engine.step()


class Stage(nn.Module):
    """A pipeline stage as DeepSpeed sees it: one layer that maps a tensor to a tensor.

    Every process of a pipeline reads the same samples, so only activations travel; a micro-batch's
    targets and documents wait here for its forward pass. Forward passes run in order.
    """

    def __init__(self, part: Transformer) -> None:
        super().__init__()
        self.part = part

    def begin(self, micro_batches: Sequence[Batch], weight: Tensor) -> None:
        """Take the micro-batches of the coming passes."""
        self._coming = iter(micro_batches)
        self._weight = weight
        self.totals = Totals(self.part.sum_shapes, weight.device)
        self.log_probs: list[Tensor] = []
        """Of passes without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        output: Output = self.part(x, next(self._coming), self._weight)
        self.totals.add(output)
        if output.log_probs_BT is not None and not torch.is_grad_enabled():
            self.log_probs.append(output.log_probs_BT)
        return output.x.contiguous()


def pipeline_module(stage: Stage, mesh: DeviceMesh) -> Any:
    """DeepSpeed's module of which this process has one layer, its whole stage."""
    num_stages = mesh["pipeline"].size()
    layers: list[nn.Module | None] = [None] * num_stages  # others' layers are built by them
    layers[mesh["pipeline"].get_local_rank()] = stage
    topology = PipeModelDataParallelTopology(
        num_pp=num_stages, num_mp=mesh["tensor"].size(), num_dp=mesh["shard"].size()
    )
    return PipelineModule(layers=layers, topology=topology, partition_method="uniform")


class _Passes(TrainSchedule):
    """1F1B up to the last backward pass.

    DeepSpeed would go on with the tied gradients, their reduction and the optimizer's step, which
    leaves the guard no place to judge.
    """

    def steps(self) -> Iterator[list[Any]]:
        ending = OptimizerStep | ReduceGrads | ReduceTiedGrads
        for commands in super().steps():
            yield [command for command in commands if not isinstance(command, ending)]


class PipelineSchedule:
    """The passes through DeepSpeed's pipeline.

    Args:
        engine: its `PipelineEngine`.
        stage: this process's.
        num_ranks: data-parallel ranks.
        tied: keeps the last stage's head equal to the first's embedding, if they are tied.
    """

    def __init__(self, engine: Any, stage: Stage, num_ranks: int, tied: TiedHead | None) -> None:
        self.engine = engine
        self._stage = stage
        self._num_ranks = num_ranks
        self._tied = tied
        head = stage.part.head
        self._head_weight = None if tied is None or head is None else head.weight
        if self._head_weight is not None:
            self._head_weight.register_post_accumulate_grad_hook(_accumulate)

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> dict[str, Tensor]:
        # DeepSpeed averages gradients over the data-parallel ranks; the loss is a global sum.
        self._run(_Passes, micro_batches, weight * self._num_ranks)
        if self._tied is not None:
            self._tied.add_gradient(self._embedding_gradient(), self._head_gradient())
        self.engine._exec_reduce_grads()
        return self._stage.totals.sums

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Batch]) -> Evaluated:
        self.engine.eval()
        self._run(InferenceSchedule, micro_batches, torch.ones((), device=self.engine.device))
        self.engine.train()
        return Evaluated(self._stage.totals.sums, self._stage.log_probs)

    def step(self) -> None:
        """Run DeepSpeed's instruction for the update."""
        self.engine._exec_optimizer_step()

    def _run(self, schedule: Any, micro_batches: Sequence[Batch], weight: Tensor) -> None:
        if self._tied is not None:
            self._tied.follow()
        engine = self.engine
        self._stage.begin(micro_batches, weight)
        batches = [(batch.tokens_BT, batch.targets_BT) for batch in micro_batches]
        engine.set_dataiterator(iter(batches))
        engine.total_loss, engine._compute_loss = None, True
        # Messages' shapes are told with the first one, and evaluation's may be others.
        engine.reset_activation_shape()
        engine._exec_schedule(schedule(len(micro_batches), engine.num_stages, engine.stage_id))

    def _embedding_gradient(self) -> Tensor | None:
        """Where DeepSpeed has accumulated it, in fp32 for every precision."""
        embedding = self._stage.part.embedding
        if embedding is None:
            return None
        for place in ("_hp_grad", "grad_accum", "grad"):
            gradient: Tensor | None = getattr(embedding.weight, place, None)
            if gradient is not None:
                return gradient.view(embedding.weight.shape)
        raise AssertionError("the embedding got no gradient")

    def _head_gradient(self) -> Tensor | None:
        if self._head_weight is None:
            return None
        gradient: Tensor = self._head_weight.grad_accum  # type: ignore[attr-defined]
        self._head_weight.grad_accum = None  # type: ignore[attr-defined]
        return gradient


def _accumulate(weight: Tensor) -> None:
    """Sum the micro-batches' gradients in fp32, as DeepSpeed does for what it optimises."""
    assert weight.grad is not None
    before = getattr(weight, "grad_accum", None)
    weight.grad_accum = weight.grad.float() if before is None else before + weight.grad  # type: ignore[attr-defined]
    weight.grad = None
