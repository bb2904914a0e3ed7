"""Weights that aren't trained, beside adapters that are."""

from __future__ import annotations

import torch
from torch import nn

from triax.models.layers.transformer import Transformer


def freeze(model: Transformer, dtype: torch.dtype) -> None:
    """Let the model's frozen weights have no gradient, and only the dtype that products read.

    Args:
        model: the transformer or a pipeline stage of it, on any device, split or not, before ZeRO.
        dtype: of what is computed.
    """
    if model.config.lora is None:
        return
    for name, module in model.named_modules():
        for own, parameter in list(module.named_parameters(recurse=False)):
            row = model.description.by_name[f"{name}.{own}"]
            if row.is_frozen:
                frozen = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                module.register_parameter(own, frozen)
    model.tie()
