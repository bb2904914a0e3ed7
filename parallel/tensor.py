"""Tensor and sequence parallelism: applies the sharding plan of `models/` with DTensor.

Every parameter becomes a DTensor on the tensor axis, the whole ones too. Between modules,
activations are plain local tensors: with sequence parallelism each process holds its part of the
tokens there, without it all of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch._inductor.config
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement

from triax.common.errors import UserError
from triax.models.batch import Batch
from triax.models.description import Description, Role
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.head import Head, head_loss
from triax.models.layers.loss import LossSums, capped_logits
from triax.models.layers.low_rank import LowRankLinear, low_rank_linear
from triax.models.layers.transformer import Transformer

_TOKENS, _HEADS = Shard(1), Shard(2)
"""What (B, T, D) and (B, T, H, K) activations are divided by."""


def split_tensors(model: Transformer, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Split the model's parameters over the tensor axis, in place; names stay.

    Args:
        model: the transformer or a pipeline stage of it, on any device, meta too.
        mesh: the 1-D mesh of the tensor axis.
        sequence_parallel: divide the tokens between the split modules.
    """
    tokens = _TOKENS if sequence_parallel else Replicate()
    plan: dict[str, ParallelStyle] = {}
    mixtures = [f"{n}." for n, m in model.named_modules() if isinstance(m, MixtureOfExperts)]
    for name, module in model.named_modules():
        if name.startswith(tuple(mixtures)):
            continue  # split by `parallel/experts.py`
        role = model.description.role_of_module(name)
        if isinstance(module, LowRankLinear):
            plan[name] = _LowRank(name, model.description, tokens)
        elif role is not None:
            plan[name] = _style(role, tokens)
        elif model.description.takes_whole_sequence(name):
            plan[name] = _WholeSequence(tokens)
    parallelize_module(model, mesh, plan)


def overlap_messages(mesh: DeviceMesh) -> None:
    """Let compiled blocks run their matrix products in pieces while peers' parts arrive.

    Source: Wang et al. 2023 (decomposition of collectives). CUDA only.

    Raises:
        UserError: the mesh is one of CPUs.
    """
    if mesh.device_type != "cuda":
        raise UserError("parallel.async_tensor needs CUDA devices; set it to false here")
    torch._inductor.config._micro_pipeline_tp = True
    symmetric_memory.enable_symm_mem_for_group(mesh.get_group().group_name)


def _style(role: Role, tokens: Placement) -> ParallelStyle:
    match role:
        case Role.VOCABULARY:
            return _VocabularyEmbedding(tokens)
        case Role.COLUMN:
            return ColwiseParallel()
        case Role.ROW:
            return RowwiseParallel(output_layouts=tokens)
        case Role.NORM | Role.POSITIONS:
            return _WholeWeight(tokens)
        case Role.HEAD_NORM:
            return _WholeWeight(_HEADS)
        case Role.HEAD:
            return _VocabularyHead(tokens)
        case _:
            raise AssertionError(f"{role}: not of a layer that is split by itself")


def gathered(x: Tensor, layout: Placement, mesh: DeviceMesh) -> DTensor:
    """Local activations, divided as `layout` says, as a whole on every process."""
    divided = DTensor.from_local(x, mesh, [layout], run_check=False)
    whole: DTensor = divided.redistribute(placements=[Replicate()])
    return whole


class _VocabularyEmbedding(ParallelStyle):
    """The embedding's rows are split; a token's vector is the sum over processes.

    Torch's own style hands on a collective that is still running; a compiled block would take it
    for a constant, and the embedding would silently get no gradient.
    """

    def __init__(self, tokens: Placement) -> None:
        super().__init__()
        self._tokens = tokens

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute(module, device_mesh, Shard(0))
        forward = module.forward

        def on_rows(tokens_BT: Tensor) -> Tensor:
            whole = DTensor.from_local(tokens_BT, device_mesh, [Replicate()], run_check=False)
            vectors: DTensor = forward(whole).redistribute(placements=[self._tokens])
            return vectors.to_local()

        module.forward = on_rows
        return module


class _WholeSequence(ParallelStyle):
    """Gathers the tokens of a module's first input, and keeps it a DTensor: the gradients of all
    modules that read it then come together in one reduction."""

    def __init__(self, tokens: Placement) -> None:
        super().__init__()
        self._tokens = tokens

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward = module.forward

        def on_whole(x: Tensor, *rest: Any) -> Tensor:
            result: Tensor = forward(gathered(x, self._tokens, device_mesh), *rest)
            return result

        module.forward = on_whole
        return module


class _WholeWeight(ParallelStyle):
    """Weights that every process holds, applied to activations divided as `layout` says.

    Their gradients are sums over processes if the activations are divided.
    """

    def __init__(self, layout: Placement) -> None:
        super().__init__()
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute(module, device_mesh, Replicate())
        forward = module.forward

        def on_parts(x: Tensor, *rest: Tensor | None) -> Tensor:
            whole = DTensor.from_local(x, device_mesh, [self._layout], run_check=False)
            everywhere = [
                None if y is None
                else DTensor.from_local(y, device_mesh, [Replicate()], run_check=False)
                for y in rest
            ]  # fmt: skip
            result: DTensor = forward(whole, *everywhere)
            return result.to_local()

        module.forward = on_parts
        return module


class _LowRank(ParallelStyle):
    """A linear layer with factors, each split as its row of the table says; its bias isn't trained.

    Nothing is sent for the factors: the rows of a column-split layer's B are split, so its output
    is; and of a row-split layer the product of B and a part of A's sum is a part of the layer's.
    The whole factor's gradient is a sum over processes.
    """

    def __init__(self, name: str, description: Description, tokens: Placement) -> None:
        super().__init__()
        self._name = name
        self._description = description
        self._tokens = tokens

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, LowRankLinear)
        for name, _ in list(module.named_parameters(recurse=False)):
            split = self._description.by_name[f"{self._name}.{name}"].split_dimension
            placement = Replicate() if split is None else Shard(split)
            _distribute_one(module, name, device_mesh, placement)
        is_column = self._description.role_of_module(self._name) is Role.COLUMN
        of_part = partial(_column_of_part, module, device_mesh)
        module.forward = (  # type: ignore[method-assign]
            of_part if is_column else partial(_row_of_part, module, device_mesh, self._tokens)
        )
        return module


def _column_of_part(linear: LowRankLinear, mesh: DeviceMesh, x: Tensor) -> Tensor:
    """This process's output features for whole tokens."""
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
    assert isinstance(x, DTensor)
    whole = x.to_local(grad_placements=[Partial()])
    bias = None if linear.bias is None else _part(linear.bias)
    a, b = _part(linear.lora_a, is_sum=True), _part(linear.lora_b)
    return low_rank_linear(whole, _part(linear.weight), bias, a, b, linear.scale)


def _row_of_part(linear: LowRankLinear, mesh: DeviceMesh, tokens: Placement, x: Tensor) -> Tensor:
    """The sum of what all processes make of their input features."""
    a, b = _part(linear.lora_a), _part(linear.lora_b, is_sum=True)
    own = low_rank_linear(x, _part(linear.weight), None, a, b, linear.scale)
    summed: DTensor = DTensor.from_local(own, mesh, [Partial()], run_check=False).redistribute(
        placements=[tokens]
    )
    return summed.to_local() if linear.bias is None else summed.to_local() + _part(linear.bias)


def _part(parameter: Tensor, *, is_sum: bool = False) -> Tensor:
    """What is here of a parameter, whose gradient may be a sum over processes."""
    assert isinstance(parameter, DTensor)
    return parameter.to_local(grad_placements=[Partial()] if is_sum else None)


class _VocabularyHead(ParallelStyle):
    """The head's rows are split; the loss needs one maximum and two sums for each token."""

    def __init__(self, tokens: Placement) -> None:
        super().__init__()
        self._tokens = tokens

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Head)
        distribute(module, device_mesh, Shard(0))
        vocabulary = SplitVocabulary(module.weight.shape[0], device_mesh.get_group())
        module.options = replace(module.options, vocabulary=vocabulary)
        module.forward = partial(_split_head, module, device_mesh, self._tokens)  # type: ignore[method-assign]
        module.logits = partial(_whole_logits, module, device_mesh, self._tokens)  # type: ignore[method-assign]
        return module


def _split_head(
    head: Head, mesh: DeviceMesh, tokens: Placement, h: Tensor, batch: Batch, weight: Tensor
) -> LossSums:
    """`Head.forward` with whole hidden states and this process's rows; the hidden states' gradient
    is the sum over all processes' rows."""
    h_BTD = gathered(h, tokens, mesh).to_local(grad_placements=[Partial()])
    rows = head.weight
    assert isinstance(rows, DTensor)
    return head_loss(h_BTD, rows.to_local(), batch, weight, head.options)


def _whole_logits(head: Head, mesh: DeviceMesh, tokens: Placement, h: Tensor) -> Tensor:
    """`Head.logits` on every process, from all processes' rows; without gradients."""
    rows = head.weight
    assert isinstance(rows, DTensor)
    h_BTD = gathered(h, tokens, mesh).to_local()
    own = capped_logits(h_BTD, rows.to_local(), head.options.softcap)
    return DTensor.from_local(own, mesh, [Shard(2)], run_check=False).full_tensor()


class SplitVocabulary:
    """This process's rows of a head that is split over the tensor axis; a `Vocabulary`."""

    def __init__(self, vocab_size: int, group: dist.ProcessGroup) -> None:
        assert vocab_size % group.size() == 0, (vocab_size, group.size())
        self.first = vocab_size // group.size() * group.rank()
        self._group = group

    def max(self, x_C: Tensor) -> Tensor:
        dist.all_reduce(x_C, op=dist.ReduceOp.MAX, group=self._group)
        return x_C

    def sum(self, x_C: Tensor) -> Tensor:
        dist.all_reduce(x_C, group=self._group)
        return x_C


def distribute(module: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    """Make DTensors of a module's own parameters."""
    for name, _ in list(module.named_parameters(recurse=False)):
        _distribute_one(module, name, mesh, placement)


def _distribute_one(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    # Every process makes the same weights later: nothing is sent.
    parameter = module.get_parameter(name)
    split = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(split))
