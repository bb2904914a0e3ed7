"""A model without weights yet, spread over the processes that use it."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from triax.inference.team import Team
from triax.models.config import ModelConfig
from triax.models.layers.transformer import Transformer
from triax.parallel.experts import spread_all_experts
from triax.parallel.initial_weights import local_part
from triax.parallel.mesh import zero_mesh
from triax.parallel.tensor import split_tensors
from triax.parallel.zero import shard


def empty_model(config: ModelConfig, dtype: torch.dtype, team: Team) -> Transformer:
    """This process's part of the model, in memory that holds anything.

    All parameters and buffers have the names of the whole model.
    """
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    if team.mesh is not None:
        if team.config.tensor > 1:
            split_tensors(model, team.mesh["tensor"], sequence_parallel=False)
            model.tie()  # or a tied weight would be gathered twice
        spread_all_experts(model, team.mesh, None, team.config)
        if team.config.zero_stage == 3:
            # Weights are kept in the dtype that is computed in: nothing is cast.
            shard(model, zero_mesh(team.mesh), 3, "fp32")
            register_fsdp_forward_method(model, "hidden_states")
    model.to_empty(device=team.device)
    model.tie()
    return model.eval()


def copy_part(target: torch.Tensor, whole: torch.Tensor) -> None:
    """Fill a tensor, perhaps a part of a spread one, from the whole one."""
    local, offset = local_part(target)
    part = whole
    if isinstance(target, DTensor):
        for dim, (start, size) in enumerate(zip(offset, local.shape, strict=True)):
            part = part.narrow(dim, start, size)
    local.copy_(part)
