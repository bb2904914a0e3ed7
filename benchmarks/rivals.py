"""Other training loops on one device, for `compare_speed.py`.

A loop takes a step on tokens and targets (B, T) and returns the loss on the device, unwaited for.
Each function makes one from the config's model, optimizer and precision: fp32 weights, gradients
and moments, products in the compute dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from triax.checkpoint.formats import tensor_table, to_huggingface
from triax.common.errors import UserError
from triax.launcher.config.run_config import RunConfig
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.parallel.dtypes import DTYPES

Loop = Callable[[Tensor, Tensor], Tensor]


class PlainModel(nn.Module):
    """The transformer with the loss of a tutorial: all logits at once."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        model = self.transformer
        assert model.norm is not None and model.head is not None
        h_BTD = model.norm(model.hidden_states(tokens_BT, tokens_BT.shape[1]))
        logits_BTV = F.linear(h_BTD, model.head.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def bare(config: RunConfig, device: torch.device) -> Loop:
    """FSDP2 with compiled blocks; fp8 by torchao's tensorwise recipe, but for the head."""
    transformer = with_weights(config, device)
    model = PlainModel(transformer)
    if config.precision.compute == "fp8":
        # Only there where somebody wants to compare.
        from torchao.float8 import convert_to_float8_training

        convert_to_float8_training(transformer.blocks)
    mesh = init_device_mesh(device.type, (1,))
    dtype = DTYPES[config.precision.compute]
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in transformer.blocks.values():
        if config.parallel.compile:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return simple_loop(config, model.parameters(), model)


def transformers(config: RunConfig, device: torch.device) -> Loop:
    """Hugging Face's Llama, compiled as a whole, with autocast's mixed precision."""
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if config.precision.compute == "fp8":
        raise UserError("has no fp8")
    fields = to_huggingface(
        config.model, dtype="float32", seq_len=config.data.seq_len, special_tokens={}
    )
    # Its own name, "sdpa", makes a dense mask wherever it is compiled, and takes neither a causal
    # kernel nor grouped heads with that. For a name without a mask function it makes none.
    AttentionInterface.register("sdpa_is_causal", sdpa_attention_forward)
    with device:
        fields |= {"attn_implementation": "sdpa_is_causal"}
        model = LlamaForCausalLM(LlamaConfig(**fields))
    weights = with_weights(config, device).state_dict()
    table = tensor_table(config.model)
    model.load_state_dict({theirs.name: theirs.join(weights) for theirs in table}, strict=False)
    del weights

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    compiled = torch.compile(loss_of) if config.parallel.compile else loss_of

    def forward(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with autocast(config, device):
            return compiled(tokens_BT, targets_BT)

    return simple_loop(config, model.parameters(), forward)


def torchtitan(config: RunConfig, device: torch.device) -> Loop:
    """torchtitan's Llama 3 by its own parts, as its trainer puts them together."""
    import titan

    return titan.make_loop(config, device)


def with_weights(config: RunConfig, device: torch.device) -> Transformer:
    """The model with the weights that triax's step starts from."""
    with torch.device("meta"):
        model = Transformer(config.model)
    model.to_empty(device=device)
    model.tie()
    initialise_model(model, model.description, config.run.seed)
    return model


def simple_loop(config: RunConfig, parameters: Iterable[nn.Parameter], forward: Loop) -> Loop:
    """Forward, backward, clip, update with fused AdamW, which decays matrices only."""
    weights, settings = list(parameters), config.optimizer
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss = forward(tokens_BT, targets_BT)
        loss.backward()
        if settings.clip_norm is not None:
            clip_grad_norm_(weights, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def autocast(config: RunConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for loops without FSDP2."""
    dtype = DTYPES[config.precision.compute]
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


RIVALS = {"bare": bare, "transformers": transformers, "torchtitan": torchtitan}
