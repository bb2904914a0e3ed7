"""This process's part of a model for DeepSpeed, with megatron-core's layers in it."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh

from triax.models.config import ModelConfig
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.context.attention import divide_attention
from triax.parallel.dtypes import DTYPES
from triax.parallel.engine import RMSNorm
from triax.parallel.engines.megatron_layers import block_of, swap_layers, swap_norms, torch_rms_norm
from triax.parallel.flat_shards import Block
from triax.parallel.pipeline import make_part
from triax.parallel.recompute import checkpoint_activations


def local_model(
    model: ModelConfig,
    mesh: DeviceMesh,
    config: ParallelConfig,
    compute: str,
    seq_len: int,
    rms_norm: RMSNorm | None,
) -> tuple[Transformer, dict[str, Block]]:
    """This process's part of the model on the meta device, in the order of `parallelize`; and
    what it holds of each parameter, before ZeRO."""
    stage = mesh["pipeline"].get_local_rank()
    part = make_part(model, config, stage, seq_len).module
    group = mesh["tensor"].get_group()
    table = part.description.by_name
    blocks = {name: block_of(table[name], group) for name, _ in part.named_parameters()}
    if config.tensor > 1:
        swap_layers(part, group, config.sequence_parallel)
    swap_norms(part, group, config.sequence_parallel, rms_norm or torch_rms_norm)
    if config.context > 1:
        divide_attention(part, mesh["context"], config.context_method, tensor=config.tensor)
    for block in part.blocks.values():
        checkpoint_activations(block, config.activation_checkpointing)
    # ZeRO-3 would silently compute in the dtype in which it is given the weights.
    part.to(dtype=DTYPES[compute])
    return part, blocks
