"""Applies the sharding plan of `models/` with megatron-core's tensor-parallel layers.

Layers are swapped from outside: the model code and the parameters' names stay. As with the native
engine, activations between modules are (B, T, D) with all tokens, or this process's part of them
under sequence parallelism; megatron-core divides the first dimension, so tokens come first within.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn
from torch.nn import functional as F

from triax.models.batch import Batch
from triax.models.description import Parameter, Role
from triax.models.layers.head import Head
from triax.models.layers.loss import LossSums, likeliest
from triax.models.layers.transformer import Transformer
from triax.parallel.engine import RMSNorm
from triax.parallel.flat_shards import Block
from triax.parallel.tensor import SplitVocabulary


def swap_layers(model: Transformer, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
    """Replace every matrix with a role by megatron-core's layer, on the meta device, in place.

    Args:
        model: the transformer or a pipeline stage of it, on the meta device.
        group: the processes of the tensor axis.
        sequence_parallel: divide the tokens between the split modules.
    """
    for name, module in list(model.named_modules()):
        role = model.description.role_of_module(name)
        if role is not None and not isinstance(module, nn.RMSNorm):
            with torch.device("meta"):
                model.set_submodule(name, _swapped(role, module, group, sequence_parallel))
        elif model.description.takes_whole_sequence(name):
            module.register_forward_pre_hook(_WholeSequence(group, sequence_parallel))
    model.tie()


def swap_norms(
    model: Transformer, group: dist.ProcessGroup, sequence_parallel: bool, compute: RMSNorm
) -> None:
    """Replace every norm, on the meta device, in place.

    Args:
        model: the transformer or a pipeline stage of it.
        group: the processes of the tensor axis.
        sequence_parallel: tokens are divided between the split modules.
        compute: what normalises.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.RMSNorm):
            # Without sequence parallelism, norms of whole tokens see the same ones everywhere.
            is_of_heads = model.description.role_of_module(name) is Role.HEAD_NORM
            is_partial = group.size() > 1 and (sequence_parallel or is_of_heads)
            model.set_submodule(name, _Norm(module, compute, group if is_partial else None))


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """PyTorch's own."""
    return F.rms_norm(x, weight.shape, weight, eps)


def block_of(parameter: Parameter, group: dist.ProcessGroup) -> Block:
    """The rectangle of a parameter that this process of the tensor axis holds."""
    shape, offset = list(parameter.shape), [0] * len(parameter.shape)
    dimension = parameter.split_dimension
    if dimension is not None:
        shape[dimension] //= group.size()
        offset[dimension] = shape[dimension] * group.rank()
    return Block(tuple(offset), tuple(shape), parameter.shape)


def _swapped(
    role: Role, module: nn.Module, group: dist.ProcessGroup, sequence_parallel: bool
) -> nn.Module:
    config = ModelParallelConfig(
        tensor_model_parallel_size=group.size(),
        sequence_parallel=sequence_parallel and role is Role.ROW,
        use_cpu_initialization=True,  # on the default device, which is meta here
        perform_initialization=False,
    )
    options: dict[str, Any] = {"config": config, "init_method": _no_init, "tp_group": group}
    match role:
        case Role.VOCABULARY:
            assert isinstance(module, nn.Embedding)
            options["reduce_scatter_embeddings"] = sequence_parallel
            return _Embedding(module.num_embeddings, module.embedding_dim, **options)
        case Role.COLUMN:
            assert isinstance(module, nn.Linear)
            return _Column(module.in_features, module.out_features, **options)
        case Role.ROW:
            assert isinstance(module, nn.Linear)
            return _Row(module.in_features, module.out_features, **options)
        case Role.HEAD:
            assert isinstance(module, Head)
            return _Head(module, _WholeSequence(group, sequence_parallel), **options)
        case _:
            raise AssertionError(f"{module} is whole on every process")


def _no_init(_weight: Tensor) -> None:
    raise AssertionError("weights are initialised by the engine")


class _WholeSequence:
    """A forward pre-hook: gives a module all tokens; the gradients of all layers within come
    together in one reduction, so that these need none of their own."""

    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        self._group = group
        self._sequence_parallel = sequence_parallel

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.whole(args[0]), *args[1:])

    def whole(self, x_BTD: Tensor) -> Tensor:
        """All tokens, from this process's or from all."""
        if not self._sequence_parallel:
            copied: Tensor = copy_to_tensor_model_parallel_region(x_BTD, group=self._group)
            return copied
        gathered_TBD: Tensor = gather_from_sequence_parallel_region(
            x_BTD.transpose(0, 1), group=self._group
        )
        return gathered_TBD.transpose(0, 1)


class _Embedding(VocabParallelEmbedding):
    def forward(self, tokens_BT: Tensor) -> Tensor:
        result: Tensor = super().forward(tokens_BT)
        return result.transpose(0, 1) if self.reduce_scatter_embeddings else result


class _Column(ColumnParallelLinear):
    # Megatron-core's own answers None, which DeepSpeed would put among a checkpoint's tensors.
    get_extra_state = nn.Module.get_extra_state

    def __init__(self, num_inputs: int, num_outputs: int, **options: Any) -> None:
        super().__init__(num_inputs, num_outputs, bias=False, disable_grad_reduce=True, **options)

    def forward(self, x_BTD: Tensor) -> Tensor:
        result: Tensor = super().forward(x_BTD)[0]
        return result


class _Row(RowParallelLinear):
    get_extra_state = nn.Module.get_extra_state

    def __init__(self, num_inputs: int, num_outputs: int, **options: Any) -> None:
        super().__init__(
            num_inputs, num_outputs, bias=False, input_is_parallel=True, skip_bias_add=False,
            **options,
        )  # fmt: skip

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.sequence_parallel:
            result: Tensor = super().forward(x_BTD)[0]
            return result
        part_TBD: Tensor = super().forward(x_BTD.transpose(0, 1))[0]
        return part_TBD.transpose(0, 1)


class _Norm(nn.RMSNorm):
    """RMSNorm by a given function.

    With a group, every process of it applies the weight to activations of its own, and its gradient
    is the sum of theirs.
    """

    def __init__(self, norm: nn.RMSNorm, compute: RMSNorm, group: dist.ProcessGroup | None) -> None:
        super().__init__(norm.normalized_shape, norm.eps, device="meta")
        self._compute = compute
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self._group is not None:
            weight = copy_to_tensor_model_parallel_region(weight, group=self._group)
        assert self.eps is not None
        return self._compute(x, weight, self.eps)


class _Head(_Column):
    """`Head` with this process's rows: all logits of a micro-batch exist at once, but each process
    has those of its tokens of the vocabulary only.

    The loss is megatron-core's and not `models/layers/loss.py`: two stacks that share nothing and
    agree prove each other right.
    """

    def __init__(self, head: Head, sequence: _WholeSequence, **options: Any) -> None:
        super().__init__(head.weight.shape[1], head.weight.shape[0], **options)
        self._sequence = sequence
        vocabulary = SplitVocabulary(head.weight.shape[0], options["tp_group"])
        self.options = replace(head.options, vocabulary=vocabulary)

    def forward(self, h_BTD: Tensor, batch: Batch, weight: Tensor) -> LossSums:  # type: ignore[override]
        """`Head.forward`; every process gets the whole sums."""
        logits_BTV = super().forward(self._sequence.whole(h_BTD)).float()
        if self.options.softcap is not None:
            logits_BTV = self.options.softcap * torch.tanh(logits_BTV / self.options.softcap)
        counts_BT = is_target_BT = batch.is_target_BT
        if batch.weights_BT is not None:
            counts_BT = batch.weights_BT.float().where(is_target_BT, 0)
        z_loss = torch.zeros((), device=logits_BTV.device)
        if self.options.z_loss:
            log_normaliser_BT = _log_normaliser(logits_BTV, self.tp_group)
            z_loss = self.options.z_loss * (log_normaliser_BT.square() * counts_BT).sum()
            # Megatron-core's cross entropy overwrites its logits.
            logits_BTV = logits_BTV.clone()
        likeliest_N: Tensor | None = None
        if self.options.tells_likeliest:
            likeliest_N = likeliest(logits_BTV.flatten(0, 1), self.options.vocabulary)
        losses_BT: Tensor = vocab_parallel_cross_entropy(logits_BTV, batch.targets_BT)
        cross_entropy = (losses_BT * counts_BT).sum()
        told_N = -losses_BT.detach().flatten() if likeliest_N is None else likeliest_N
        return LossSums(
            weight * (cross_entropy + z_loss),
            cross_entropy.detach().double(),
            z_loss.detach().double(),
            told_N.where(is_target_BT.flatten(), 0),
        )


def _log_normaliser(logits_BTV: Tensor, group: dist.ProcessGroup) -> Tensor:
    """log sum exp over the whole vocabulary."""
    highest_BT = logits_BTV.detach().amax(dim=-1)
    dist.all_reduce(highest_BT, op=dist.ReduceOp.MAX, group=group)
    sums_BT = (logits_BTV - highest_BT[..., None]).exp().sum(dim=-1)
    total_BT: Tensor = reduce_from_tensor_model_parallel_region(sums_BT, group=group)
    return highest_BT + total_BT.log()
