"""Expert and tensor parallelism of mixtures of experts.

With expert parallelism each process of the expert axis has some of a layer's experts, whole or its
part of each over the tensor axis, and all rows are sent to where their experts are and back. With
tensor parallelism the whole layer works on all tokens with parts of the weights: what leaves it is
summed over the tensor axis, and so are the gradients of what is whole.

Shape letters: N tokens, D hidden size, E experts of a layer, P processes of the expert axis, L
experts of one process, R rows, one for each expert of each token, by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from torch.nn import functional as F

from triax.models.layers.experts import Experts, MixtureOfExperts, Work, grouped_product
from triax.models.layers.output import LayerOutput
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.tensor import distribute, gathered


def spread_all_experts(
    model: Transformer, mesh: DeviceMesh, expert_mesh: DeviceMesh | None, config: ParallelConfig
) -> None:
    """Spread a model's mixtures over the expert and the tensor axis, in place; names stay.

    Args:
        model: the transformer or a pipeline stage of it, on any device, meta too.
        mesh: from `build_mesh`.
        expert_mesh: from `build_expert_mesh`, where experts are divided over processes.
        config: the `[parallel]` section.
    """
    tokens = Shard(1) if config.sequence_parallel else Replicate()
    for block in model.blocks.values():
        if isinstance(block.mlp, MixtureOfExperts):
            _spread(block.mlp, mesh["tensor"], expert_mesh, tokens)


def _spread(
    mixture: MixtureOfExperts,
    tensor_mesh: DeviceMesh,
    expert_mesh: DeviceMesh | None,
    tokens: Placement,
) -> None:
    is_split = tensor_mesh.size() > 1
    if expert_mesh is not None:
        axes = ("expert", "tensor") if is_split else ("expert",)
        _split_experts(mixture.experts, expert_mesh[axes])
        mixture.experts.visit = partial(work_elsewhere, expert_mesh["expert"].get_group())
    elif is_split:
        _split_experts(mixture.experts, tensor_mesh)
    if is_split:
        _split_rest(mixture, tensor_mesh)
        mixture.forward = partial(_on_whole, mixture.forward, tensor_mesh, tokens)  # type: ignore[method-assign]


def _split_experts(experts: Experts, mesh: DeviceMesh) -> None:
    """Divide their number over the expert axis and their hidden size over the tensor axis, of which
    the mesh may have one or both."""
    names = mesh.mesh_dim_names
    assert names is not None
    for name, weight in list(experts.named_parameters(recurse=False)):
        by_axis: dict[str, Placement] = {"expert": Shard(0), "tensor": Shard(1)}
        if name == "down":
            by_axis["tensor"] = Shard(2)
        placements = [by_axis[axis] for axis in names]
        # Every process makes the same weights later: nothing is sent.
        split = distribute_tensor(weight, mesh, placements, src_data_rank=None)
        experts.register_parameter(name, nn.Parameter(split))
    experts.multiply = _product_of_part


def _split_rest(mixture: MixtureOfExperts, mesh: DeviceMesh) -> None:
    distribute(mixture.router, mesh, Replicate())
    mixture.router.multiply = _partial_logits
    mixture.router.loss_share = 1 / mesh.size()
    if mixture.shared is None:
        return
    for name, linear in mixture.shared.named_children():
        distribute(linear, mesh, Shard(1) if name == "down" else Shard(0))
        linear.forward = partial(_linear_of_part, linear)


def _product_of_part(x_RD: Tensor, weight: Tensor, ends_E: Tensor) -> Tensor:
    assert isinstance(weight, DTensor)
    return grouped_product(x_RD, weight.to_local(), ends_E)


def _partial_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Logits as everywhere; the weight's gradient is a sum over the tensor axis, since outputs of
    experts, which they are multiplied by, are."""
    assert isinstance(weight, DTensor)
    return F.linear(x, weight.to_local(grad_placements=[Partial()]))


def _linear_of_part(linear: nn.Module, x: Tensor) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, DTensor)
    return F.linear(x, weight.to_local())


def _on_whole(
    forward: Callable[..., LayerOutput],
    mesh: DeviceMesh,
    tokens: Placement,
    x: Tensor,
    counted_BT: Tensor | None = None,
) -> LayerOutput:
    """The layer on all tokens, whose outputs, and gradients of inputs, are summed over the mesh."""
    whole = gathered(x, tokens, mesh).to_local(grad_placements=[Partial()])
    output = forward(whole, counted_BT)
    part = DTensor.from_local(output.x, mesh, [Partial()], run_check=False)
    result: DTensor = part.redistribute(placements=[tokens])
    return output._replace(x=result.to_local())


def rows_by_process(
    counts_PL: Tensor, arriving_PL: Tensor, num_rows: int
) -> tuple[list[int], list[int]]:
    """How many of so many rows go to each process, and how many come from each; the host waits."""
    sent, received = torch.stack((counts_PL.sum(1), arriving_PL.sum(1))).tolist()
    assert sum(sent) == num_rows
    return sent, received


def work_elsewhere(
    group: dist.ProcessGroup, work: Work, x_ND: Tensor, tokens_R: Tensor, counts_E: Tensor
) -> Tensor:
    """Send rows to the processes that have their experts, let these work, and get them back.

    How many rows go where travels first, while rows are brought into their order. Torch's message
    takes these numbers from the host, which waits for them here, once a layer.
    """
    size = group.size()
    counts_PL = counts_E.view(size, -1)
    arriving_PL = torch.empty_like(counts_PL)
    on_its_way = dist.all_to_all_single(arriving_PL, counts_PL, group=group, async_op=True)
    rows_RD = x_ND.index_select(0, tokens_R)
    on_its_way.wait()
    sent, received = rows_by_process(counts_PL, arriving_PL, len(rows_RD))
    here_RD = all_to_all_single_autograd(rows_RD, received, sent, group)
    # They come by process and then by expert.
    experts_L = torch.arange(counts_PL.shape[1], device=rows_RD.device)
    experts_R = experts_L.repeat(size).repeat_interleave(
        arriving_PL.flatten(), output_size=sum(received)
    )
    order_R = experts_R.argsort(stable=True)
    made_RD = work(here_RD.index_select(0, order_R), arriving_PL.sum(0))
    made_RD = made_RD.index_select(0, order_R.argsort())
    back: Tensor = all_to_all_single_autograd(made_RD, sent, received, group)
    return back
