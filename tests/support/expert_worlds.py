"""A plain loop over a model with experts on one process, to compare layouts with.

The model's own code differentiates; what changes once a step is written here anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from worlds import (
    SEED,
    SMALL,
    Begin,
    Case,
    Run,
    engine_run,
    make_context,
    make_engine,
    micro_batches,
    named_weights,
    sequences,
)

from triax.checkpoint.reading import read_into
from triax.checkpoint.upcycling import read_upcycled
from triax.common.tokens import IGNORE_INDEX
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.router import Router
from triax.models.layers.transformer import Transformer
from triax.training.config import OptimizerConfig
from triax.training.records.metrics import metrics_row
from triax.training.step.readback import Readback
from triax.training.step.state import TrainState
from triax.training.step.step import train_step

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


@torch.no_grad()
def starve(tensors: Mapping[str, Tensor]) -> None:
    """No token chooses the last expert, nor with groups the others of its group."""
    for name, tensor in tensors.items():
        if name.endswith("router.bias"):
            tensor[-1] = -100.0


@torch.no_grad()
def tie(tensors: Mapping[str, Tensor]) -> None:
    """All experts have the same score for all tokens, so that all choose the same."""
    for name, tensor in tensors.items():
        if name.endswith("router.weight"):
            tensor.zero_()


def begun_runs(cases: Sequence[tuple[Case, Begin | None]]) -> list[Run]:
    """Several cases one after the other in the same processes."""
    return [engine_run(case, begin) for case, begin in cases]


def plain_expert_runs(cases: Sequence[tuple[Case, Begin | None]]) -> list[Run]:
    """Likewise, of plain loops."""
    return [plain_expert_run(case, begin) for case, begin in cases]


def plain_expert_run(case: Case, begin: Begin | None = None) -> Run:
    """`worlds.plain_run` for a model with experts: the whole batch at once."""
    config = model_config(**case.model)
    model = Transformer(config)
    initialise_model(model, model.description, SEED)
    if begin is not None:
        begin(dict((*model.named_parameters(), *model.named_buffers())))
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


def step_row(case: Case) -> dict[str, Any]:
    """The line of metrics.jsonl of a case's first step, on this process."""
    context, readback = make_context(case, make_engine(case)), Readback()
    result = train_step(context, micro_batches(case, 0), lr=case.optimizer["lr"])
    readback.push(0, TrainState(1), 1e-3, result)
    figures = readback.drain()
    assert figures is not None
    return metrics_row(
        figures, tokens_per_step=1, flops_per_token=1, peak_flops=None, memory_gib=0.0,
        loss_scaled=False,
    )  # fmt: skip


def step_rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Those of several cases."""
    return [step_row(case) for case in cases]


@torch.no_grad()
def counted_row(case: Case) -> dict[str, float]:
    """The same figures, counted token by token; scores are a softmax's."""
    config = model_config(**case.model)
    model, seen = Transformer(config), dict[int, Tensor]()
    initialise_model(model, model.description, SEED)
    for number, router in routers_of(model).items():
        router.register_forward_hook(lambda _, args, __, n=number: seen.update({n: args[0]}))
    rows = sequences(0, case.global_batch_size, config.vocab_size, case.seq_len)
    model(rows.tokens_BT, rows, torch.ones(()))
    counts = {n: [0] * router.num_experts for n, router in routers_of(model).items()}
    entropies, balances, num_targets = [], [], 0
    for number, router in routers_of(model).items():
        top_k, num_experts = router.layer.top_k, router.num_experts
        for b, x_TD in enumerate(seen[number]):
            chosen, mean_E, num = [0] * num_experts, torch.zeros(num_experts), 0
            for t, x_D in enumerate(x_TD):
                if rows.targets_BT[b, t] == IGNORE_INDEX:
                    continue
                shares_E = (router.weight @ x_D).softmax(0)
                for expert in shares_E.topk(top_k).indices.tolist():
                    chosen[expert] += 1
                    counts[number][expert] += 1
                entropies.append(-float((shares_E * shares_E.log()).sum()))
                mean_E, num = mean_E + shares_E, num + 1
            # f_i and P_i of the Switch Transformer, of one sequence, by its number of targets.
            fractions = Tensor(chosen) * num_experts / (top_k * max(num, 1))
            balances.append(num * float((fractions * mean_E / max(num, 1)).sum()))
            num_targets += num
    loads = {n: max(each) * len(each) / sum(each) for n, each in counts.items()}
    return {
        **{f"expert_load/{n}": load for n, load in loads.items()},
        "expert_load_max": max(loads.values()),
        "dead_experts": sum(each.count(0) for each in counts.values()),
        "router_entropy": sum(entropies) / num_targets,
        "balance_loss": sum(balances) / num_targets,
        "dropped_tokens": 0.0,
    }


def upcycled_weights(case: Case, dense: str, noise: float) -> dict[str, Tensor]:
    """The whole weights of a new engine that begins from a dense model's checkpoint."""
    engine = make_engine(case)
    weights = {name: t for name, t in engine.state().items() if name.startswith("model.")}
    read_upcycled(partial(read_into, Path(dense)), weights, model_config(**case.model), noise)
    return named_weights(engine)
