"""A plain loop over a model with experts on one process, to compare layouts with.

The model's own code differentiates; what changes once a step is written here anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from worlds import SEED, SMALL, Case, Run, sequences

from triax.common.tokens import IGNORE_INDEX
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.router import Router, Sums
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


def routers_of(model: Transformer) -> list[Router]:
    """In the order of the layers."""
    mlps = (block.mlp for block in model.blocks.values())
    return [mlp.router for mlp in mlps if isinstance(mlp, MixtureOfExperts)]


def plain_expert_run(case: Case) -> Run:
    """`worlds.plain_run` for a model with experts: the whole batch at once."""
    config = model_config(**case.model)
    model = Transformer(config)
    initialise_model(model, model.description, SEED)
    settings = OptimizerConfig(**case.optimizer)
    groups = [
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
        for router in routers_of(model):
            router.totals = torch.zeros(Sums.count(router.num_experts), dtype=torch.float64)
        num_targets = (rows.targets_BT != IGNORE_INDEX).sum()
        sums = model(rows.tokens_BT, rows.targets_BT, rows.document_ids_BT, 1 / num_targets)
        sums.objective.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        norm = sum(gradient.double().square().sum() for gradient in gradients.values()) ** 0.5
        if step == 0:
            run.gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        torch.nn.utils.clip_grads_with_norm_(
            model.parameters(), case.clip_norm or 1e30, norm.float()
        )
        optimizer.step()
        optimizer.zero_grad()
        for router in routers_of(model):
            _learn_load(router)
        run.losses.append((sums.cross_entropy / num_targets).item())
        run.grad_norms.append(norm.item())
    tensors = (*model.named_parameters(), *model.named_buffers())
    run.parameters = {name: tensor.detach().clone() for name, tensor in tensors}
    return run


@torch.no_grad()
def _learn_load(router: Router) -> None:
    assert router.totals is not None
    counts: list[float] = router.totals[: router.num_experts].tolist()
    mean = sum(counts) / len(counts)
    if router.load is not None:
        router.load.copy_(Tensor([count / mean for count in counts]))
    if router.bias is not None:
        for number, count in enumerate(counts):
            router.bias[number] += router.layer.bias_rate * ((count < mean) - (count > mean))
