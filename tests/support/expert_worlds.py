"""A plain loop over a model with experts on one process, to compare layouts with.

The model's own code differentiates; what changes once a step is written here anew.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from worlds import SEED, SMALL, Case, Run, make_engine, named_weights, sequences

from triax.checkpoint.reading import read_into
from triax.checkpoint.upcycling import read_upcycled
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.router import Router
from triax.models.layers.transformer import Transformer
from triax.training.config import OptimizerConfig

EXPERTS = {
    "num_experts": 4, "top_k": 2, "ffn_hidden_size": 32, "first_dense_layers": 1,
    "sequence_loss": 0.05, "batch_loss": 0.05, "z_loss": 0.01,
}  # fmt: skip
DEEPSEEK = EXPERTS | {
    "scores": "sigmoid", "num_groups": 2, "num_chosen_groups": 1, "bias_rate": 0.01,
    "num_shared_experts": 1, "scale": 1.5, "batch_loss": 0.0,
}  # fmt: skip


def sparse_model(experts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The small model with experts."""
    return SMALL | {"experts": experts} | changes


def routers_of(model: Transformer) -> dict[int, Router]:
    """By the numbers of their layers."""
    mlps = {int(number): block.mlp for number, block in model.blocks.items()}
    return {n: mlp.router for n, mlp in mlps.items() if isinstance(mlp, MixtureOfExperts)}


def plain_expert_run(case: Case) -> Run:
    """`worlds.plain_run` for a model with experts: the whole batch at once."""
    config = model_config(**case.model)
    model = Transformer(config)
    initialise_model(model, model.description, SEED)
    settings = OptimizerConfig(**case.optimizer)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps,
        weight_decay=settings.weight_decay, foreach=False, fused=False,
    )  # fmt: skip
    run = Run([], [], {}, {})
    for step in range(case.num_steps):
        first = step * case.global_batch_size
        rows = sequences(first, case.global_batch_size, config.vocab_size, case.seq_len)
        num_targets = rows.num_targets
        output = model(rows.tokens_BT, rows, 1 / num_targets)
        output.x.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        norm = sum(gradient.double().square().sum() for gradient in gradients.values()) ** 0.5
        if step == 0:
            run.gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        torch.nn.utils.clip_grads_with_norm_(
            model.parameters(), case.clip_norm or 1e30, norm.float()
        )
        optimizer.step()
        optimizer.zero_grad()
        for number, router in routers_of(model).items():
            _learn_load(router, output.sums["expert_tokens"][number].tolist())
        run.losses.append((output.sums["cross_entropy"] / num_targets).item())
        run.grad_norms.append(norm.item())
    tensors = (*model.named_parameters(), *model.named_buffers())
    run.parameters = {name: tensor.detach().clone() for name, tensor in tensors}
    return run


@torch.no_grad()
def _learn_load(router: Router, counts: list[float]) -> None:
    mean = sum(counts) / len(counts)
    if router.load is not None:
        router.load.copy_(Tensor([count / mean for count in counts]))
    if router.bias is not None:
        for number, count in enumerate(counts):
            router.bias[number] += router.layer.bias_rate * ((count < mean) - (count > mean))


def upcycled_weights(case: Case, dense: str, noise: float) -> dict[str, Tensor]:
    """The whole weights of a new engine that begins from a dense model's checkpoint."""
    engine = make_engine(case)
    weights = {name: t for name, t in engine.state().items() if name.startswith("model.")}
    read_upcycled(partial(read_into, Path(dense)), weights, model_config(**case.model), noise)
    return named_weights(engine)
