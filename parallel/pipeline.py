"""Pipeline parallelism: the passes of a process that holds one or several stages.

The order of work and the messages between stages are those of `torch.distributed.pipelining`;
gathering parameters and reducing gradients is ours, so that every ZeRO stage is exact under every
schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from triax.models.batch import Batch
from triax.models.config import ModelConfig
from triax.models.layers.output import Output
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.schedule import Evaluated, Part, Totals
from triax.parallel.stages import SCHEDULES, num_stages, rank_of_stage, split_layers
from triax.parallel.zero import finish_backward, free_gathered, gather, set_micro_batch

_SCHEDULES: dict[str, Callable[..., Any]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved-1f1b": ScheduleInterleaved1F1B,
    "interleaved-zero-bubble": ScheduleInterleavedZeroBubble,
    "zbv-zero-bubble": ScheduleZBVZeroBubble,
    "dualpipe-v": ScheduleDualPipeV,
}


def make_part(model: ModelConfig, config: ParallelConfig, stage: int, seq_len: int) -> Part:
    """One stage of the transformer on the meta device; its parameters keep their names."""
    with torch.device("meta"):
        part = Transformer(model)
    part.keep(split_layers(model, config, seq_len)[stage])
    return Part(stage, part)


class _StageModule(nn.Module):
    """A stage as torch's schedules see it. It hides FSDP2 from them: they would set its flags for
    one ZeRO stage only."""

    def __init__(self, part: Transformer, device: torch.device) -> None:
        super().__init__()
        self.part = part
        self.begin(device)

    def begin(self, device: torch.device) -> None:
        """Count the coming passes from 0."""
        self.totals = Totals(self.part.sum_shapes, device)

    def forward(self, x: Tensor, *, weights_of_loss: Tensor, **fields: Tensor) -> Tensor:
        """`Transformer.forward`, whose sums are kept here.

        Args:
            x: the batch's tokens, or the former stage's output.
            weights_of_loss: the objective's weight as a tensor of one element: a schedule cuts what
                it is given into micro-batches.
            fields: a `Batch`'s tensors.
        """
        output: Output = self.part(x, Batch(**fields), weights_of_loss[0])
        self.totals.add(output)
        return output.x


class _Stage(PipelineStage):
    """A stage whose backward passes follow the ZeRO stage, and which has memory for a message only
    from when it may arrive until it is read. torch's own holds one for each micro-batch's input and
    gradient as long as the schedule lives."""

    def __init__(self, *args: Any, zero_stage: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._zero_stage = zero_stage

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        assert isinstance(self.submod, _StageModule)
        part = self.submod.part
        if backward_type == "full":
            set_micro_batch(part, self._zero_stage, is_last=last_backward)
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        # A backward pass in two halves. FSDP2's hooks fire somewhere in both, before the weights
        # have their gradients: there they must neither reduce nor free, and we do it afterwards.
        # The halves find the weights by identity, so these must be gathered in both.
        gather(part)
        set_micro_batch(part, zero_stage=1, is_last=False)
        result = super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if backward_type == "weight":
            finish_backward(part, self._zero_stage, is_last=last_backward)
        elif self._zero_stage == 3:
            free_gathered(part)
        return result

    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_memory():
            return super()._prepare_forward_infra(*args, **kwargs)

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_memory():
            return super()._prepare_backward_infra(*args, **kwargs)

    @contextmanager
    def _without_memory(self) -> Iterator[None]:
        """What torch prepares meanwhile is shapes alone."""
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        _place(self.args_recv_info[fwd_chunk_id], self.device)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        _place(self.grad_recv_info[bwd_chunk_id], self.device)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        _place(self.args_recv_info[fwd_chunk_id], torch.device("meta"))
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        result = super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        _place(self.grad_recv_info[bwd_chunk_id], torch.device("meta"))
        return result


def _place(messages: Iterable[Any], device: torch.device) -> None:
    """Give what a stage receives a new tensor, on a device; the first stage's tokens have none."""
    for message in messages:
        buffer = getattr(message, "buffer", None)
        if buffer is not None:
            needs_gradient = buffer.requires_grad
            message.buffer = torch.empty_like(buffer, device=device, requires_grad=needs_gradient)


class PipelineSchedule:
    """`Schedule` through the stages of a pipeline.

    Args:
        parts: this process's stages, spread by `parallelize`.
        mesh: from `build_mesh`.
        config: the `[parallel]` section.
        hidden_size: D of the activations between stages.
        dtype: of the activations between stages.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        mesh: DeviceMesh,
        config: ParallelConfig,
        hidden_size: int,
        dtype: torch.dtype,
    ) -> None:
        self._device = torch.device(mesh.device_type)
        self._group = mesh["pipeline"].get_group()
        self._rank = mesh["pipeline"].get_local_rank()
        self._config = config
        self._num_stages = num_stages(config)
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._modules = {stage: _StageModule(part, self._device) for stage, part in parts}
        self._schedules: dict[tuple[int, ...], Any] = {}

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> dict[str, Tensor]:
        schedule = self._schedule(micro_batches)
        for module in self._modules.values():
            module.begin(self._device)
        batch = Batch.cat(micro_batches)
        args = [batch.tokens_BT] if self._holds(0) else []
        # The loss is the last stage's output; the target only tells the schedule that there is one.
        target = batch.targets_BT if self._holds(self._num_stages - 1) else None
        keywords = batch.tensors() | {"weights_of_loss": weight.expand(len(micro_batches))}
        schedule.step(*args, target=target, return_outputs=False, **keywords)
        return self._sums()

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Batch]) -> Evaluated:
        weight, log_probs = torch.ones((), device=self._device), []
        for module in self._modules.values():
            module.begin(self._device)
        for batch in micro_batches:
            x = batch.tokens_BT
            for stage, module in self._modules.items():
                if stage > 0 and not self._holds(stage - 1):
                    x = self._receive(batch, stage - 1)
                output: Output = module.part(x, batch, weight)
                module.totals.add(output)
                x = output.x
                if output.log_probs_BT is not None:
                    log_probs.append(output.log_probs_BT)
                elif not self._holds(stage + 1):
                    receiver = rank_of_stage(stage + 1, self._config)
                    dist.send(x, group=self._group, group_dst=receiver)
        for module in self._modules.values():
            free_gathered(module.part)
        return Evaluated(self._sums(), log_probs)

    def _sums(self) -> dict[str, Tensor]:
        """Those of this process's stages together."""
        of_stages = [module.totals.sums for module in self._modules.values()]
        return {name: torch.stack([s[name] for s in of_stages]).sum(0) for name in of_stages[0]}

    def _holds(self, stage: int) -> bool:
        return stage in self._modules

    def _hidden_shape(self, inputs: Batch) -> tuple[int, int, int]:
        """Shape of the activations between stages; sequence parallelism divides the tokens."""
        num_rows, num_tokens = inputs.targets_BT.shape
        if self._config.sequence_parallel:
            num_tokens //= self._config.tensor
        return num_rows, num_tokens, self._hidden_size

    def _receive(self, inputs: Batch, stage: int) -> Tensor:
        x = torch.empty(self._hidden_shape(inputs), dtype=self._dtype, device=self._device)
        dist.recv(x, group=self._group, group_src=rank_of_stage(stage, self._config))
        return x

    def _schedule(self, micro_batches: Sequence[Batch]) -> Any:
        """The schedule for so many micro-batches of this shape; made once."""
        first = micro_batches[0]
        key = (len(micro_batches), *first.targets_BT.shape)
        if key not in self._schedules:
            stages = [self._stage(stage, module, first) for stage, module in self._modules.items()]
            name = self._config.pipeline_schedule
            self._schedules[key] = _SCHEDULES[name](
                stages if SCHEDULES[name].has_several_stages else stages[0],
                len(micro_batches),
                loss_fn=lambda objective, _target: objective,
                scale_grads=False,
            )
        return self._schedules[key]

    def _stage(self, stage: int, module: _StageModule, inputs: Batch) -> _Stage:
        """Shapes are given, so that torch doesn't run the model once to infer them."""
        hidden = torch.empty(self._hidden_shape(inputs), dtype=self._dtype, device="meta")
        is_first, is_last = stage == 0, stage == self._num_stages - 1
        return _Stage(
            module,
            stage,
            self._num_stages,
            self._device,
            input_args=inputs.tokens_BT.to("meta") if is_first else hidden.requires_grad_(),
            output_args=torch.empty((), device="meta") if is_last else hidden.requires_grad_(),
            group=self._group,
            zero_stage=self._config.zero_stage,
        )
