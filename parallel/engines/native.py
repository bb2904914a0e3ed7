"""The native engine: DTensor, pipelining and FSDP2, on gloo and NCCL alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from triax.models.batch import Batch
from triax.models.config import ModelConfig
from triax.parallel.balance import Balance
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.dtypes import DTYPES
from triax.parallel.engine import (
    CopyingOptimizer,
    Counts,
    EvaluationSums,
    MakeOptimizer,
    RMSNorm,
    StepSums,
    set_rates,
    takes_flags,
)
from triax.parallel.flat_shards import local_tensor
from triax.parallel.initial_weights import initialise_parts
from triax.parallel.main_params import MainParams
from triax.parallel.mesh import num_copies
from triax.parallel.nonfinite import NonFiniteFinder, first_non_finite
from triax.parallel.norms import squared_norms
from triax.parallel.parallelize import parallelize
from triax.parallel.pipeline import PipelineSchedule
from triax.parallel.reading import ReadingCounter
from triax.parallel.results import (
    evaluation_sums,
    shared_log_probs,
    step_sums,
    telling_likeliest,
)
from triax.parallel.schedule import Evaluated, NoPipelining, Part, Schedule, attention_kernels
from triax.parallel.stages import num_stages, rank_of_stage
from triax.parallel.tied import tied_head
from triax.parallel.zero import keep_gradients_in


class NativeEngine:
    """An `Engine` over PyTorch's own parallelism; see the protocol for the methods.

    Args:
        model: the transformer's shape.
        mesh: from `build_mesh`; its device type is where the engine computes.
        config: the `[parallel]` section.
        precision: the `[precision]` section.
        seq_len: tokens of a sequence.
        seed: of the initial weights.
        make_optimizer: builds the optimizer over the sharded parameters.
        rms_norm: None: DTensors are for torch's own only.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: DeviceMesh,
        config: ParallelConfig,
        *,
        precision: PrecisionConfig,
        seq_len: int,
        seed: int,
        make_optimizer: MakeOptimizer,
        rms_norm: RMSNorm | None = None,
    ) -> None:
        assert rms_norm is None, "no kernel of others takes DTensors"
        self.device = torch.device(mesh.device_type)
        self._config = config
        # Once: a part of a mesh is made anew each time it is asked for.
        self._tensor_size = mesh["tensor"].size()
        self._pipeline_group = mesh["pipeline"].get_group()
        self.parts = parallelize(model, mesh, config, precision, seq_len)
        self._buffers = _on_device(self.parts, self.device)
        self._tied = tied_head(model, mesh, config, self.parts)
        weights = {n: p for part in self.parts for n, p in part.module.named_parameters()}
        followers = [] if self._tied is None else [weights.pop("head.weight", None)]
        self._frozen = {n: weights.pop(n) for n, p in [*weights.items()] if not p.requires_grad}
        self.parameters: dict[str, Tensor] = dict(weights)
        self._gradient_dtype = DTYPES[precision.gradients]
        self._main_params: MainParams | None = None
        if any(weight.dtype != torch.float32 for weight in weights.values()):
            others = [each for each in followers if each is not None and each.requires_grad]
            tied = {"embedding.weight"} if model.tie_embeddings else set()
            self._main_params = MainParams(weights, others, self._gradient_dtype, used_twice=tied)
            self.parameters = self._main_params.parameters
        elif self._gradient_dtype != torch.float32:
            for part in self.parts:
                keep_gradients_in(part.module, self._gradient_dtype)
        initialise_parts(self.parameters | self._frozen, model, seed)
        # The state of routers belongs to what is frozen.
        self._balance = Balance([] if model.lora is not None else self.parts)
        self._schedule = _make_schedule(self.parts, mesh, config, precision, model.hidden_size)
        copies = [num_copies(parameter, mesh) for parameter in self.parameters.values()]
        self._num_copies = torch.tensor(copies, device=self.device)
        self._reading = ReadingCounter(mesh)
        self.optimizer = make_optimizer(self.parameters)
        self._writes_copies = False
        if self._main_params is not None and isinstance(self.optimizer, CopyingOptimizer):
            self.optimizer.copies = self._main_params.copies
            self._writes_copies = True
        self._is_published = self._is_followed = False
        self._fill_in_optimizer_state()

    def count_targets(self, micro_batches: Sequence[Batch]) -> Counts:
        return self._reading.count(micro_batches)

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> StepSums:
        self._publish()
        if self._main_params is not None and self._writes_copies and self._config.pipeline == 1:
            self._main_params.expect(len(micro_batches))
        inputs = self._own(micro_batches)
        with attention_kernels(self._config.attention):
            sums = self._schedule.forward_backward(inputs, weight)
        if self._tied is not None:
            self._tied.give_gradient()
        if self._main_params is not None:
            self._main_params.take_gradients()
        # What several processes hold counts once.
        squared_norm = (squared_norms(self.local_gradients()) / self._num_copies).sum()
        told = step_sums(sums, squared_norm, weight, self._tensor_size)
        self._balance.learn(told.extra)
        return told

    def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
        set_rates(self.optimizer, lr)
        if takes_flags(self.optimizer):
            # It divides where it reads the gradients anyway.
            self.optimizer.grad_scale = 1 / gradient_factor
            self.optimizer.found_inf = skip
            self.optimizer.step()
        elif not bool(skip):
            torch._foreach_mul_(self.local_gradients(), gradient_factor)
            self.optimizer.step()
        self._balance.update(skip)
        self.optimizer.zero_grad(set_to_none=True)
        self._is_published = self._is_published and self._writes_copies

    def evaluate(self, micro_batches: Sequence[Batch]) -> EvaluationSums:
        evaluated = self._forward(self._own(micro_batches))
        num_readers = self._reading.num_readers
        return evaluation_sums(evaluated, micro_batches, self._tensor_size, num_readers)

    def log_probs(self, batches: Sequence[Batch]) -> list[Tensor]:
        inputs = self._own(batches)
        last = rank_of_stage(num_stages(self._config) - 1, self._config)
        parts = shared_log_probs(self._forward(inputs), inputs, self._pipeline_group, last)
        return [self._reading.sequences.join(part) for part in parts]

    def likeliest(self, batches: Sequence[Batch]) -> list[Tensor]:
        with telling_likeliest(part.module for part in self.parts):
            return [tokens_BT.long() for tokens_BT in self.log_probs(batches)]

    def _own(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's part of each sequence, on the device; cut here, when all is counted."""
        return [self._reading.sequences.cut(batch.to(self.device)) for batch in batches]

    def sum_over_data(self, values: Tensor) -> Tensor:
        return self._reading.total(values)

    def _forward(self, inputs: Sequence[Batch]) -> Evaluated:
        self._publish()
        with attention_kernels(self._config.attention):
            return self._schedule.forward(inputs)

    def locate_non_finite(self, micro_batches: Sequence[Batch]) -> str | None:
        finders = [NonFiniteFinder(part.module) for part in self.parts]
        with ExitStack() as stack:
            for finder in finders:
                stack.enter_context(finder)
            self.evaluate(micro_batches)
        if (name := first_non_finite(self.parameters)) is not None:
            return f"parameter {name}"
        return next((f.first for f in finders if f.first is not None), None)

    def state(self) -> dict[str, Tensor]:
        self._is_published = False  # the caller may write into it
        tensors = {
            f"model.{name}": parameter.detach() for name, parameter in self.parameters.items()
        }
        if not self._frozen:
            tensors |= self._named_buffers()
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def frozen_state(self) -> dict[str, Tensor]:
        if not self._frozen:
            return {}
        self._is_followed = False  # the caller may write into it
        tensors = {f"model.{name}": weight.detach() for name, weight in self._frozen.items()}
        return tensors | self._named_buffers()

    def _named_buffers(self) -> dict[str, Tensor]:
        return {f"model.{name}": buffer for name, buffer in self._buffers.items()}

    def local_gradients(self) -> list[Tensor]:
        """What the update reads on this process: there from the passes to the update."""
        gradients = []
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            assert gradient is not None, f"{name} got no gradient"
            if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
                assert gradient.placements == parameter.placements, f"{name}: not a whole gradient"
            gradients.append(local_tensor(gradient))
        return gradients

    def _publish(self) -> None:
        """Let the model compute with the weights that the optimizer, or a checkpoint, has made."""
        if self._main_params is not None and not self._is_published:
            self._main_params.publish()
            self._is_published = True
        if self._tied is not None and not self._is_followed:
            self._tied.follow()
            self._is_followed = bool(self._frozen)  # an embedding that isn't trained stays

    def _fill_in_optimizer_state(self) -> None:
        """Let the optimizer make its state now, so that a checkpoint can be read into it.

        Torch's make it in their first step: one is taken with zero gradients at a rate of zero,
        and what it counted is set back.
        """
        if isinstance(self.optimizer, CopyingOptimizer):
            self.optimizer.make_state()
            return
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter, dtype=self._gradient_dtype)
        self.update(0.0, torch.ones((), device=self.device), torch.zeros((), device=self.device))
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()


def _on_device(parts: Sequence[Part], device: torch.device) -> dict[str, Tensor]:
    """Give the parts memory; returns what the model keeps and doesn't train, as it begins."""
    found = {}
    for part in parts:
        part.module.to_empty(device=device)
        part.module.tie()
        for name, buffer in part.module.named_buffers():
            buffer.fill_(part.module.description.parameters[name].init_value)
            found[name] = buffer
    return found


def _make_schedule(
    parts: Sequence[Part],
    mesh: DeviceMesh,
    config: ParallelConfig,
    precision: PrecisionConfig,
    hidden_size: int,
) -> Schedule:
    if config.pipeline == 1:
        return NoPipelining(parts[0].module, config.zero_stage)
    return PipelineSchedule(parts, mesh, config, hidden_size, DTYPES[precision.compute])
