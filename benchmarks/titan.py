"""torchtitan's training step by its own parts, for `compare_speed.py`; written for 0.2.2.

Its Llama 3, parallelisation (which compiles each block) and compiled loss are called as its trainer
calls them on one device. Clipping and fused AdamW are torch's there as here.
"""

from __future__ import annotations

import torch
from rivals import Loop, autocast, simple_loop
from torch import Tensor
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3.infra.parallelize import parallelize_llama
from torchtitan.models.llama3.model.args import RoPEScalingArgs, TransformerModelArgs
from torchtitan.models.llama3.model.model import Transformer
from torchtitan.protocols.model_converter import build_model_converters

from triax.launcher.config.run_config import RunConfig
from triax.models.config import ModelConfig


def make_loop(config: RunConfig, device: torch.device) -> Loop:
    """The loop; its weights are torchtitan's own random ones."""
    job, dims = _job(config), ParallelDims(1, 1, 1, 1, 1, 1, 1, world_size=1)
    with torch.device("meta"):
        model = Transformer(_shape(config.model, config.data.seq_len))
    build_model_converters(job, dims).convert(model)
    model = parallelize_llama(model, dims, job)
    model.to_empty(device=device)
    with torch.no_grad():
        model.init_weights()
    loss_of = build_cross_entropy_loss(job)

    def forward(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with autocast(config, device):
            loss: Tensor = loss_of(model(tokens_BT), targets_BT) / targets_BT.numel()
            return loss

    return simple_loop(config, model.parameters(), forward)


def _job(config: RunConfig) -> JobConfig:
    job = JobConfig()
    job.training.seq_len = config.data.seq_len
    job.compile.enable = config.parallel.compile
    job.compile.components = ["model", "loss"]
    job.activation_checkpoint.mode = "none"
    if config.precision.compute == "fp8":
        job.model.converters = ["quantize.linear.float8"]
        job.quantize.linear.float8.filter_fqns = ["output"]
    return job


def _shape(model: ModelConfig, seq_len: int) -> TransformerModelArgs:
    """Its feed-forward width is a rounded multiple of 8/3 of the hidden size: here it's ours."""
    base = int(2 * 4 * model.hidden_size / 3)
    layer = model.architecture().layers[0]
    attention, ffn = layer.attention, layer.feed_forward.hidden_size
    assert attention.rotary is not None
    scaling = attention.rotary.scaling
    return TransformerModelArgs(
        dim=model.hidden_size,
        n_layers=model.num_layers,
        n_heads=attention.num_heads,
        n_kv_heads=attention.num_query_groups,
        vocab_size=model.vocab_size,
        multiple_of=ffn,
        ffn_dim_multiplier=ffn / base,
        norm_eps=model.norm_eps,
        rope_theta=attention.rotary.theta,
        rope_scaling_args=RoPEScalingArgs(scaling_factor=scaling.factor if scaling else 1.0),
        max_seq_len=seq_len,
    )
