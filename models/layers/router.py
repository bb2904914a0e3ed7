"""Which experts a token goes through, and what keeps their load balanced.

Shape letters: B sequences, T tokens, D hidden size, E experts, K experts of a token, G groups.

Each loss is a sum over the target tokens of a micro-batch times the weight of the objective, which
is 1 over the number of targets of the whole batch, like the cross entropy. So none of them depends
on how a batch is divided. With a token's shares s (its scores over their sum), of n target tokens
in a sequence c_i those that chose expert i:

| loss | sum over | of |
|---|---|---|
| sequence | sequences | n E / K sum_i (c_i / n) (mean s_i over the n), DeepSeek-V2, eq. 12 to 14 |
| batch | target tokens | sum_i load_i s_i, load_i = c_i over its mean in the last step's batch |
| z | target tokens | log(sum_i exp(logit_i))^2, ST-MoE (Zoph et al. 2022), eq. 5 |

The first two are 1 a token where the load is even. The load of the batch itself would be known
only after all of its forward passes, and backward passes have begun by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triax.models import architecture
from triax.models.architecture import ScoreKind

_TINY = 1e-20
"""Added to a sum of scores, which sigmoids could make 0."""


class Objective(NamedTuple):
    """What the loss of a micro-batch is summed over, for layers that have a loss of their own."""

    is_target_BT: Tensor
    weight: Tensor
    """fp32 scalar that multiplies the loss."""


class Choice(NamedTuple):
    """The experts of each token, and what their outputs are multiplied by."""

    experts_BTK: Tensor
    """int64."""
    weights_BTK: Tensor
    """fp32."""


class Sums(NamedTuple):
    """Sums over the target tokens of a micro-batch; fp32."""

    counts_E: Tensor
    """Tokens that chose each expert."""
    shares_E: Tensor
    sequence_loss: Tensor
    """Unweighted, like the next two."""
    z_loss: Tensor
    entropy: Tensor
    """Of shares, in nats."""

    @staticmethod
    def count(num_experts: int) -> int:
        """How many numbers they are."""
        return 2 * num_experts + 3

    def joined(self) -> Tensor:
        """All of them, one after the other."""
        return torch.cat((self.counts_E, self.shares_E, torch.stack(self[2:])))

    @staticmethod
    def of(joined: Tensor, num_experts: int) -> Sums:
        """From what `joined` has made, or a sum of such."""
        counts_E, shares_E, rest = joined.split((num_experts, num_experts, 3), dim=-1)
        return Sums(counts_E, shares_E, *rest.unbind(-1))


class Router(nn.Module):
    """Scores all experts for each token in fp32, and chooses the best.

    With `bias_rate` the choice (not the weights) goes by scores plus a bias, which a step raises
    for experts with less than the mean load and lowers for the others (Wang et al. 2024).

    Attributes:
        bias, load: fp32 (E,), for what needs them; changed once a step from outside.
        totals: gets the `Sums` of every backward pass added, if it isn't None.
        loss_share: what this process adds of the losses, where several compute the same.
    """

    multiply: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)
    """How logits come about."""
    totals: Tensor | None = None
    loss_share = 1.0
    bias: Tensor | None
    load: Tensor | None

    def __init__(self, layer: architecture.Experts, width: int) -> None:
        super().__init__()
        self.layer, self.num_experts = layer.router, layer.num_experts
        self.weight = nn.Parameter(torch.empty(layer.num_experts, width))
        nn.init.normal_(self.weight, std=width**-0.5)
        has_bias, has_load = layer.router.bias_rate > 0, layer.router.batch_loss > 0
        self.register_buffer("bias", torch.zeros(layer.num_experts) if has_bias else None)
        self.register_buffer("load", torch.ones(layer.num_experts) if has_load else None)

    def forward(self, x_BTD: Tensor, objective: Objective | None) -> Choice:
        """Choose experts.

        Args:
            x_BTD: whole sequences, or the loss of each wouldn't be one of a sequence.
            objective: None where nothing is differentiated.
        """
        logits_BTE = self.multiply(x_BTD.float(), self.weight.float())
        is_softmax = self.layer.scores is ScoreKind.SOFTMAX
        scores_BTE = logits_BTE.softmax(-1) if is_softmax else logits_BTE.sigmoid()
        experts_BTK = self._best(scores_BTE)
        weights_BTK = scores_BTE.gather(-1, experts_BTK)
        if self.layer.is_normalised:
            weights_BTK = weights_BTK / (weights_BTK.sum(-1, keepdim=True) + _TINY)
        weights_BTK = weights_BTK * self.layer.scale
        if objective is not None:
            shares_BTE = scores_BTE
            if not is_softmax:
                shares_BTE = scores_BTE / (scores_BTE.sum(-1, keepdim=True) + _TINY)
            loss, sums = self._balance(logits_BTE, shares_BTE, experts_BTK, objective)
            weights_BTK = _WithLoss.apply(weights_BTK, loss, sums, self.totals)
        return Choice(experts_BTK, weights_BTK)

    @torch.no_grad()
    def _best(self, scores_BTE: Tensor) -> Tensor:
        """The experts that each token chooses, of the best groups if there are groups: those whose
        two best experts have the largest sum (DeepSeek-V3)."""
        if self.bias is not None:
            scores_BTE = scores_BTE + self.bias
        num_groups = self.layer.num_groups
        if num_groups > 1:
            groups = scores_BTE.unflatten(-1, (num_groups, -1))
            values_BTG = groups.topk(2, dim=-1).values.sum(-1)
            chosen = values_BTG.topk(self.layer.num_chosen_groups, dim=-1).indices
            is_out_BTG = torch.ones_like(values_BTG).scatter(-1, chosen, 0.0).bool()
            scores_BTE = groups.masked_fill(is_out_BTG[..., None], -torch.inf).flatten(-2)
        return scores_BTE.topk(self.layer.top_k, dim=-1).indices

    def _balance(
        self, logits_BTE: Tensor, shares_BTE: Tensor, experts_BTK: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """The losses' weighted sum (fp32 scalar), and `Sums` in one tensor."""
        layer, num_experts = self.layer, self.num_experts
        is_target_BT1 = objective.is_target_BT[..., None].float()
        chosen_BTE = torch.zeros_like(shares_BTE).scatter(-1, experts_BTK, 1.0)
        counts_BE = (chosen_BTE * is_target_BT1).sum(1)
        shares_BE = (shares_BTE * is_target_BT1).sum(1)
        num_B = is_target_BT1.sum((1, 2)).clamp(min=1)
        sequence_B = (counts_BE * shares_BE).sum(-1) * num_experts / (layer.top_k * num_B)
        z_loss = (logits_BTE.logsumexp(-1, keepdim=True).square() * is_target_BT1).sum()
        loss = layer.sequence_loss * sequence_B.sum() + layer.z_loss * z_loss
        if self.load is not None:
            loss = loss + layer.batch_loss * (self.load * shares_BE).sum()
        with torch.no_grad():
            entropy = -(torch.xlogy(shares_BTE, shares_BTE) * is_target_BT1).sum()
            sums = Sums(counts_BE.sum(0), shares_BE.sum(0), sequence_B.sum(), z_loss, entropy)
        return objective.weight * self.loss_share * loss, sums.joined().detach()


class _WithLoss(torch.autograd.Function):
    """Hands on a tensor, and has a loss beside it differentiated in the same backward pass.

    Such a loss needs no way to the model's end, so it is in the gradient under any schedule. The
    step's sums grow in the backward pass too, which is made once however often activations are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, sums: Tensor, totals: Tensor | None) -> Tensor:
        ctx.save_for_backward(loss, sums)
        ctx.totals = totals
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        loss, sums = ctx.saved_tensors
        if ctx.totals is not None:
            ctx.totals.add_(sums)
        return grads[0], torch.ones_like(loss), None, None
