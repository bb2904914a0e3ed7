"""ZeRO's stages (Rajbhandari et al. 2020) as settings of FSDP2.

| stage | sharded | parameters gathered until | gradients reduced |
|---|---|---|---|
| 0 | nothing: the shard axis is 1 | the update | once a step, by all-reduce |
| 1 | optimizer state | the update | once a step |
| 2 | and gradients | the update | after every micro-batch |
| 3 | and parameters | a block is done, forward and backward | after every micro-batch |

FSDP2 keeps the parameters that the optimizer sees sharded in every stage; what differs is how
long the gathered copies and the unreduced gradients live.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from triax.models.layers.experts import Experts, MixtureOfExperts
from triax.models.layers.transformer import Transformer
from triax.parallel.dtypes import DTYPES


def shard(
    model: Transformer,
    mesh: DeviceMesh,
    zero_stage: int,
    compute: str,
    expert_mesh: DeviceMesh | None = None,
) -> None:
    """Shard each block of `model.blocks` and the rest of the model, in place.

    Where there is one data-parallel process and no tensor parallelism, there is nothing to share or
    to bring together: the model only gets the compute dtype, and `MainParams` keeps fp32 weights.
    That saves copies of all weights and gradients. Stage 3 is left to FSDP2 even so, which holds no
    more of the cast weights than a block's. (With tensor parallelism it is FSDP2 that sums the
    partial gradients.)

    Args:
        model: the transformer, on any device, meta too.
        mesh: from `zero_mesh`.
        zero_stage: 0 to 3.
        compute: `precision.compute`; gradients are reduced in fp32 always.
        expert_mesh: from `expert_zero_mesh`, where experts are divided over processes.
    """
    is_split = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    dtype = DTYPES[compute]
    if mesh.size() == 1 and not is_split and (dtype == torch.float32 or zero_stage < 3):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return
    # Inputs aren't cast: hidden states come out of the embedding in the compute dtype, and
    # rotary angles and loss weights must stay fp32.
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    reshard = zero_stage == 3
    for block in model.blocks.values():
        if expert_mesh is not None and isinstance(block.mlp, MixtureOfExperts):
            _shard_experts(block.mlp.experts, expert_mesh, reshard, policy)
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    # The rest is needed last in the forward and first in the backward pass: it stays gathered.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    for module in sharded_modules(model):
        # The loss is divided by the global number of targets: gradients are summed, not averaged.
        # Gloo has no pre-multiplied sum, hence the second call.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _shard_experts(
    experts: Experts, mesh: DeviceMesh, reshard: bool, policy: MixedPrecisionPolicy
) -> None:
    """Experts are divided along their number, tensor parallelism divides their hidden size: what is
    left is the model's width."""

    def by_width(weight: nn.Parameter) -> Shard:
        return Shard(1 if weight is experts.down else 2)

    fully_shard(
        experts, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy,
        shard_placement_fn=by_width,
    )  # fmt: skip


def keep_gradients_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast each gradient as soon as it is there, and add later ones to it in that dtype.

    FSDP2 reduces in fp32 and gives the result the parameter's dtype; it calls these hooks right
    after, group by group, so that fp32 gradients of the whole model never exist at once. Without
    it autograd casts, in a backward pass in two halves too, which calls no hooks.
    """

    def cast(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.to(dtype)

    for parameter in (each for each in model.parameters() if each.requires_grad):
        if not isinstance(model, FSDPModule):
            parameter.grad_dtype = dtype
            continue
        parameter.grad_dtype = None  # may differ from the parameter's
        parameter.register_post_accumulate_grad_hook(cast)


def sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """The modules that FSDP2 gathers and frees as one, the model itself first."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def set_micro_batch(model: nn.Module, zero_stage: int, is_last: bool) -> None:
    """Tell FSDP2 what to do in the coming micro-batch's backward pass.

    The last one always reduces and reshards: otherwise the next forward pass would run on gathered
    copies from before the update, and the loss would stay constant without an error.
    """
    if not isinstance(model, FSDPModule):
        return  # `shard` had nothing to do
    model.set_is_last_backward(is_last)
    model.set_requires_gradient_sync(zero_stage >= 2 or is_last)
    model.set_requires_all_reduce(is_last)
    model.set_reshard_after_backward(zero_stage == 3 or is_last)


def gather(model: nn.Module) -> None:
    """Gather all parameters and keep them, until `free_gathered`."""
    for module in sharded_modules(model):
        module.unshard()


def free_gathered(model: nn.Module) -> None:
    """Drop the gathered copies, as after a forward pass without a backward one."""
    for module in sharded_modules(model):
        module.reshard()


def finish_backward(model: nn.Module, zero_stage: int, is_last: bool) -> None:
    """Do by hand what FSDP2's hooks do when a micro-batch's backward pass ends.

    For gradients that came about outside of `Tensor.backward`. FSDP2 has no public call for it;
    torch's own pipeline stages do the same.
    """
    if not isinstance(model, FSDPModule):
        return
    # First all gradients go to fp32, where earlier ones may be already: they are reduced as one.
    set_micro_batch(model, zero_stage=1, is_last=False)
    _post_backward(model)
    set_micro_batch(model, zero_stage, is_last)
    _post_backward(model)


def _post_backward(model: nn.Module) -> None:
    root = fully_shard.state(model)  # type: ignore[attr-defined]
    for state in root._state_ctx.all_states:
        for group in parameter_groups(state):
            group.post_backward()
    root._root_post_backward_final_callback()


def parameter_groups(state: Any) -> list[Any]:
    """FSDP2's groups of one module: a list since torch 2.12, one or none before."""
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is not None:
        return list(groups)
    return [group for group in (state._fsdp_param_group,) if group is not None]
