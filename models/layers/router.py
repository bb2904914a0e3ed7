"""Which experts a token goes through, and what keeps their load balanced.

Shape letters: B sequences, T tokens, D hidden size, E experts, K experts of a token, G groups.

Each loss is a sum over target tokens, or over sequences by their number of targets, like the cross
entropy, and is divided by the same number of all targets of a step. So none of them depends on how
a batch is divided. With a token's shares s (its scores over their sum), of n target tokens in a
sequence c_i those that chose expert i:

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
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triax.models import architecture
from triax.models.architecture import ScoreKind
from triax.models.layers.output import Shape

_TINY = 1e-20
"""Added to a sum of scores, which sigmoids could make 0."""


class Choice(NamedTuple):
    """The experts of each token, and what their outputs are multiplied by."""

    experts_BTK: Tensor
    """int64."""
    weights_BTK: Tensor
    """fp32."""
    sums: dict[str, Tensor]
    """See `Router.sum_shapes`; {} where tokens don't count."""
    loss: Tensor | None
    """fp32 scalar, the weighted sum of the losses; None where tokens don't count."""


class Router(nn.Module):
    """Scores all experts for each token in fp32, and chooses the best.

    With `bias_rate` the choice (not the weights) goes by scores plus a bias, which a step raises
    for experts with less than the mean load and lowers for the others (Wang et al. 2024).

    Attributes:
        bias, load: fp32 (E,), for what needs them; changed once a step from outside.
        loss_share: what this process adds of the losses, where several compute the same.
        sum_shapes: of what is told of the tokens that count: how many have chosen each expert; how
            many choices found no place, which is always 0; the sequence loss (unweighted); and the
            entropy of shares, in nats.
    """

    multiply: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)
    """How logits come about."""
    over_sequence: Callable[[Tensor], Tensor] = staticmethod(torch.clone)
    """A sum over a sequence's tokens that are here, over all of them: those may be divided."""
    loss_share = 1.0
    bias: Tensor | None
    load: Tensor | None

    def __init__(self, layer: architecture.Experts, width: int) -> None:
        super().__init__()
        self.layer, self.num_experts = layer.router, layer.num_experts
        self.weight = nn.Parameter(torch.empty(layer.num_experts, width))
        nn.init.normal_(self.weight, std=width**-0.5)
        self.sum_shapes: dict[str, Shape] = {
            "expert_tokens": (layer.num_experts,),
            "expert_dropped": (),
            "expert_balance": (),
            "router_entropy": (),
        }
        has_bias, has_load = layer.router.bias_rate > 0, layer.router.batch_loss > 0
        self.register_buffer("bias", torch.zeros(layer.num_experts) if has_bias else None)
        self.register_buffer("load", torch.ones(layer.num_experts) if has_load else None)

    def forward(self, x_BTD: Tensor, counted_BT: Tensor | None) -> Choice:
        """Choose experts.

        Args:
            x_BTD: whole sequences, or parts that `over_sequence` knows the others of: the loss of
                each wouldn't be one of a sequence.
            counted_BT: how much each token counts in losses and sums; None for neither.
        """
        logits_BTE = self.multiply(x_BTD.float(), self.weight.float())
        is_softmax = self.layer.scores is ScoreKind.SOFTMAX
        scores_BTE = logits_BTE.softmax(-1) if is_softmax else logits_BTE.sigmoid()
        experts_BTK = self.choose(scores_BTE)
        weights_BTK = scores_BTE.gather(-1, experts_BTK)
        if self.layer.is_normalised:
            weights_BTK = weights_BTK / (weights_BTK.sum(-1, keepdim=True) + _TINY)
        weights_BTK = weights_BTK * self.layer.scale
        if counted_BT is None:
            return Choice(experts_BTK, weights_BTK, {}, None)
        shares_BTE = scores_BTE
        if not is_softmax:
            shares_BTE = scores_BTE / (scores_BTE.sum(-1, keepdim=True) + _TINY)
        loss, sums = self._balance(logits_BTE, shares_BTE, experts_BTK, counted_BT[..., None])
        return Choice(experts_BTK, weights_BTK, sums, loss)

    @torch.no_grad()
    def choose(self, scores_BTE: Tensor) -> Tensor:
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
        self, logits_BTE: Tensor, shares_BTE: Tensor, experts_BTK: Tensor, counted_BT1: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses' weighted sum, and the sums."""
        layer = self.layer
        chosen_BTE = torch.zeros_like(shares_BTE).scatter(-1, experts_BTK, 1.0)
        counts_BE = (chosen_BTE * counted_BT1).sum(1)
        shares_BE = (shares_BTE * counted_BT1).sum(1)
        num_B = counted_BT1.sum((1, 2))
        # The loss of a sequence is a sum over its tokens once what they are counted by is known.
        whole_BE, whole_B1 = self.over_sequence(
            torch.cat((counts_BE, num_B[:, None]), dim=1)
        ).split((self.num_experts, 1), dim=1)
        even_B = layer.top_k / self.num_experts * whole_B1[:, 0]
        sequence_loss = ((whole_BE * shares_BE).sum(-1) / even_B.where(even_B > 0, 1)).sum()
        z_loss = (logits_BTE.logsumexp(-1, keepdim=True).square() * counted_BT1).sum()
        loss = layer.sequence_loss * sequence_loss + layer.z_loss * z_loss
        if self.load is not None:
            loss = loss + layer.batch_loss * (self.load * shares_BE).sum()
        entropies_BTE = -torch.special.xlogy(shares_BTE.detach(), shares_BTE.detach())
        sums = {
            "expert_tokens": counts_BE.sum(0),
            "expert_dropped": layer.top_k * num_B.sum() - counts_BE.sum(),
            "expert_balance": sequence_loss,
            "router_entropy": (entropies_BTE * counted_BT1).sum(),
        }
        return self.loss_share * loss, sums


def choosing_once(
    router: Router,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a layer's forward pass and for computing it again, for activation checkpointing.

    The second finds the experts that were chosen in the first: computed again with other last bits,
    scores could choose others, and other rows would come back than were differentiated.
    """
    kept: list[Tensor] = []

    def first(scores_BTE: Tensor) -> Tensor:
        kept.append(Router.choose(router, scores_BTE))
        return kept[-1]

    def again(_scores_BTE: Tensor) -> Tensor:
        return kept[-1]

    return _Choosing(router, first), _Choosing(router, again)


class _Choosing(AbstractContextManager[None]):
    """While it is entered, which may be several times, a router chooses in another way."""

    def __init__(self, router: Router, choose: Callable[[Tensor], Tensor]) -> None:
        self._router = router
        self._choose = choose

    def __enter__(self) -> None:
        self._router.choose = self._choose  # type: ignore[assignment, method-assign]

    def __exit__(self, *exception: object) -> None:
        del self._router.choose
