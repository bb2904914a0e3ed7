"""The deepspeed engine: megatron-core's tensor parallelism under DeepSpeed's ZeRO or pipeline.

DeepSpeed runs the passes, reduces the gradients and divides the optimizer; what a step means stays
ours. Its own clipping and loss scaling are off: it would decide after its own norm, in which tied
and replicated weights count several times, and the guard judges before the update. So the engine
sums its own norm over DeepSpeed's reduced gradients, and DeepSpeed calls our gated step where it
would call the optimizer's.

The state is DeepSpeed's flat fp32 buffers, seen as flat shards of named tensors: checkpoints are
the same as the native engine's, and each engine goes on from the other's.
"""

from __future__ import annotations

# First: it silences what the modules below import, and says so if it isn't installed.
from triax.parallel.engines.quiet_imports import deepspeed, parallel_state, silence  # isort: skip

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from triax.models.batch import Batch
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.init import initialise
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.engine import (
    Counts,
    EvaluationSums,
    MakeOptimizer,
    RMSNorm,
    StepSums,
    set_rates,
)
from triax.parallel.engines.deepspeed_model import local_model
from triax.parallel.engines.deepspeed_schedule import (
    NoPipelining,
    PipelineSchedule,
    Stage,
    pipeline_module,
)
from triax.parallel.engines.deepspeed_settings import deepspeed_settings
from triax.parallel.engines.zero_shares import shares_of
from triax.parallel.flat_shards import Block, FlatShard
from triax.parallel.mesh import build_weight_mesh
from triax.parallel.nonfinite import NonFiniteFinder, first_non_finite
from triax.parallel.norms import squared_norms
from triax.parallel.reading import ReadingCounter
from triax.parallel.results import (
    evaluation_sums,
    shared_log_probs,
    step_sums,
    telling_likeliest,
)
from triax.parallel.schedule import Evaluated, Part, attention_kernels
from triax.parallel.tied import TiedHead, tied_head


class DeepSpeedEngine:
    """An `Engine` over DeepSpeed and megatron-core; see the protocol for the methods.

    The arguments are those of `NativeEngine`, and:

    Args:
        rms_norm: computes the norms; PyTorch's own unless given.
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
        self.device = torch.device(mesh.device_type)
        self._reading = ReadingCounter(mesh)
        compute = precision.compute
        self._part, self._blocks = local_model(model, mesh, config, compute, seq_len, rms_norm)
        part = self._part
        # To DeepSpeed processes that divide a sequence are data-parallel: gradients are summed.
        self._mesh = mesh = build_weight_mesh(mesh, config.zero_stage)
        self._tensor_group = mesh["tensor"].get_group()
        self._attention = config.attention
        _join(mesh)
        settings, self._swapped_to = deepspeed_settings(config, compute, self.device)
        with silence():
            _materialise(part, self.device, config, settings, mesh)
            self._tied = tied_head(model, mesh, config, [Part(0, part)])
            parameters = dict(part.named_parameters())
            if self._tied is not None:
                parameters.pop("head.weight", None)  # it follows the first stage's embedding
            for name, parameter in parameters.items():
                # DeepSpeed's own norm, which it takes even if unused, counts the others once.
                parameter.tensor_model_parallel = self._is_split(name)  # type: ignore[attr-defined]
            # Apex, for one, asks where what it updates will be.
            place = self.device if config.offload == "none" else torch.device("cpu")
            self.optimizer = _make_optimizer(make_optimizer, parameters, self._blocks, place)
            self._schedule = _start(part, self.optimizer, settings, mesh, self._tied)
        self._zero = shares_of(self._schedule.engine.optimizer, parameters)
        self._is_published = False
        self._step_of_optimizer = self.optimizer.step
        self._factor = torch.ones((), device=self.device)
        self._skip = False
        self._zero.make_states()  # now, so that a checkpoint can be read into them
        self.optimizer.step = self._gated_step
        for name, shard in self._flat_shards(self._zero.buffers()).items():
            for offset, values in shard.rectangles:
                initialise(values, describe(model).parameters[name], offset, seed)

    @property
    def parts(self) -> list[Part]:
        """As `NativeEngine.parts`: the one stage that this process holds."""
        return [Part(0, self._part)]

    def local_gradients(self) -> list[Tensor]:
        """As `NativeEngine.local_gradients`; some are copies."""
        return [gradient for _, gradient in self._zero.gradients()]

    def count_targets(self, micro_batches: Sequence[Batch]) -> Counts:
        return self._reading.count(micro_batches)

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> StepSums:
        self._publish()
        inputs = self._own(micro_batches)
        with attention_kernels(self._attention):
            sums = self._schedule.forward_backward(inputs, weight)
        return step_sums(sums, self._squared_norm(), weight, self._tensor_group.size())

    def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
        self._factor = gradient_factor
        self._skip = bool(skip)
        set_rates(self.optimizer, lr)
        self._schedule.step()
        if self._skip:
            self._zero.drop_gradients()

    def evaluate(self, micro_batches: Sequence[Batch]) -> EvaluationSums:
        evaluated = self._forward(self._own(micro_batches))
        tensor_size = self._tensor_group.size()
        return evaluation_sums(evaluated, micro_batches, tensor_size, self._reading.num_readers)

    def log_probs(self, batches: Sequence[Batch]) -> list[Tensor]:
        inputs = self._own(batches)
        pipeline = self._mesh["pipeline"]
        last = pipeline.size() - 1
        parts = shared_log_probs(self._forward(inputs), inputs, pipeline.get_group(), last)
        return [self._reading.sequences.join(part) for part in parts]

    def likeliest(self, batches: Sequence[Batch]) -> list[Tensor]:
        with telling_likeliest([self._part]):
            return [tokens_BT.long() for tokens_BT in self.log_probs(batches)]

    def _own(self, batches: Sequence[Batch]) -> list[Batch]:
        return [self._reading.sequences.cut(batch.to(self.device)) for batch in batches]

    def _forward(self, inputs: Sequence[Batch]) -> Evaluated:
        self._publish()
        with attention_kernels(self._attention):
            return self._schedule.forward(inputs)

    def sum_over_data(self, values: Tensor) -> Tensor:
        return self._reading.total(values)

    def locate_non_finite(self, micro_batches: Sequence[Batch]) -> str | None:
        finder = NonFiniteFinder(self._part)
        with finder:
            self.evaluate(micro_batches)
        name = first_non_finite(self._flat_shards(self._zero.buffers()))
        return finder.first if name is None else f"parameter {name}"

    def state(self) -> dict[str, Tensor]:
        # The caller may write into the buffers, and DeepSpeed's weights are copies of them.
        self._is_published = False
        tensors: dict[str, Tensor] = {}
        for name, shard in self._flat_shards(self._zero.buffers()).items():
            tensors[f"model.{name}"] = shard
        states = self._zero.states()
        for key in {key for state in states for key in state}:
            values = [state[key] for state in states]
            if values[0].ndim:
                for name, shard in self._flat_shards(values).items():
                    tensors[f"optimizer.{name}.{key}"] = shard
            else:  # the step count, which all of a buffer's parameters share
                for name, share in self._zero.shares.items():
                    tensors[f"optimizer.{name}.{key}"] = values[share.buffer]
        return tensors

    def frozen_state(self) -> dict[str, Tensor]:
        return {}

    def _squared_norm(self) -> Tensor:
        """Of this process's shares of the gradients; fp64 scalar on the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, gradient in self._zero.gradients():  # one at a time: some are copies
            total += squared_norms([gradient])[0].to(self.device) / self._num_copies(name)
        return total

    def _is_split(self, name: str) -> bool:
        return self._blocks[name].shape != self._blocks[name].whole_shape

    def _num_copies(self, name: str) -> int:
        """How many processes of the tensor axis hold the same elements."""
        return 1 if self._is_split(name) else self._tensor_group.size()

    def _flat_shards(self, flat: Sequence[Tensor]) -> dict[str, FlatShard]:
        """Named tensors over flat buffers of any kind."""
        shard = {}
        for name, share in self._zero.shares.items():
            elements = flat[share.buffer].detach()[share.start : share.start + share.length]
            shard[name] = FlatShard(elements, share.first, self._blocks[name])
        return shard

    def _publish(self) -> None:
        if not self._is_published:
            self._zero.publish()
            self._is_published = True

    def _gated_step(self) -> None:
        """What DeepSpeed calls in the optimizer's place, once for each buffer."""
        if self._skip:
            return
        for group in self.optimizer.param_groups:
            for buffer in group["params"]:
                buffer.grad.mul_(self._factor.to(buffer.device))
        self._step_of_optimizer()


def _start(
    part: Transformer,
    optimizer: Any,
    settings: dict[str, Any],
    mesh: DeviceMesh,
    tied: TiedHead | None,
) -> NoPipelining | PipelineSchedule:
    """Hand the model to DeepSpeed."""
    num_ranks = mesh["shard"].size()
    options = {"optimizer": optimizer, "config": settings, "dist_init_required": False}
    if mesh["pipeline"].size() == 1:
        engine, *_ = deepspeed.initialize(model=part, mpu=_Groups(mesh), **options)
        return NoPipelining(engine, num_ranks)
    stage = Stage(part)
    engine, *_ = deepspeed.initialize(model=pipeline_module(stage, mesh), **options)
    return PipelineSchedule(engine, stage, num_ranks, tied)


class _Groups:
    """The process groups, under the names by which DeepSpeed asks for them."""

    def __init__(self, mesh: DeviceMesh) -> None:
        data, tensor = mesh["shard"].get_group(), mesh["tensor"].get_group()
        self.get_data_parallel_group = lambda: data
        self.get_data_parallel_rank = data.rank
        self.get_data_parallel_world_size = data.size
        self.get_model_parallel_group = self.get_tensor_model_parallel_group = lambda: tensor
        self.get_model_parallel_rank = self.get_tensor_model_parallel_rank = tensor.rank
        self.get_model_parallel_world_size = self.get_tensor_model_parallel_world_size = tensor.size


def _join(mesh: DeviceMesh) -> None:
    """What the two libraries want to find in the process before they are used."""
    # DeepSpeed's launchers set it; without a launcher there is one process.
    os.environ.setdefault("LOCAL_RANK", "0")
    # Megatron-core keeps its groups as globals, and its cross entropy looks there.
    with silence():
        deepspeed.init_distributed(dist_init_required=False)
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=mesh["tensor"].size(),
                pipeline_model_parallel_size=mesh["pipeline"].size(),
            )


def _materialise(
    part: Transformer,
    device: torch.device,
    config: ParallelConfig,
    settings: dict[str, Any],
    mesh: DeviceMesh,
) -> None:
    """Give the parameters memory; at stage 3 block by block, each divided before the next."""
    if config.zero_stage < 3:
        part.to_empty(device=device)
        part.tie()
        return
    for block in part.blocks.values():
        block.to_empty(device=device)
        _divide(block, settings, mesh)
    for name, child in part.named_children():
        if name != "blocks":
            child.to_empty(device=device)
    part.tie()
    _divide(part, settings, mesh)


def _divide(module: nn.Module, settings: dict[str, Any], mesh: DeviceMesh) -> None:
    deepspeed.zero.Init(
        module=module,
        data_parallel_group=mesh["shard"].get_group(),
        config_dict_or_path=settings,
        mpu=_Groups(mesh),
    )


def _make_optimizer(
    make_optimizer: MakeOptimizer,
    parameters: Mapping[str, nn.Parameter],
    blocks: Mapping[str, Block],
    device: torch.device,
) -> Any:
    """The optimizer over parameters that, at stage 3, have lost their shapes already: it is made
    over stand-ins without memory, of their shapes, where the update will be."""
    stand_ins = {
        name: nn.Parameter(torch.zeros((), device=device).expand(blocks[name].shape))
        for name in parameters
    }
    optimizer = make_optimizer(stand_ins)
    names = {id(stand_in): name for name, stand_in in stand_ins.items()}
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[id(stand_in)]] for stand_in in group["params"]]
    return optimizer
