"""Head and cross entropy in one, in chunks of tokens, so that the logits never exist at once.

Shape letters: N tokens of a micro-batch, C tokens of a chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from triax.common.tokens import IGNORE_INDEX

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at the same time."""


class LossSums(NamedTuple):
    """Sums over the target tokens of a micro-batch; fp32 scalars."""

    objective: Tensor
    """Weight x (cross entropy + z-loss): what is differentiated."""
    cross_entropy: Tensor
    """Unweighted and without gradient: what is reported, in nats."""


class Vocabulary(Protocol):
    """The part of the vocabulary that a process holds, and how parts come together.

    The loss needs no more of the other parts than one maximum and two sums for each token.
    """

    first: int
    """The token id of the part's first row."""

    def max(self, x_C: Tensor) -> Tensor:
        """The maximum over the parts, elementwise."""

    def sum(self, x_C: Tensor) -> Tensor:
        """The sum over the parts, elementwise."""


class WholeVocabulary:
    """One process holds all rows."""

    first = 0

    def max(self, x_C: Tensor) -> Tensor:
        return x_C

    def sum(self, x_C: Tensor) -> Tensor:
        return x_C


@dataclass(frozen=True)
class LossOptions:
    """What the model adds to plain cross entropy (see `ModelConfig`), and who holds the head."""

    z_loss: float = 0.0
    softcap: float | None = None
    vocabulary: Vocabulary = field(default_factory=WholeVocabulary)


def capped_logits(h_CD: Tensor, head_VD: Tensor, softcap: float | None) -> Tensor:
    """Logits (C, V) in fp32, squashed to `cap * tanh(logits / cap)` (Gemma 2) if asked."""
    logits_CV = (h_CD @ head_VD.T).float()
    return logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)


def _log_normaliser(logits_CV: Tensor, vocabulary: Vocabulary) -> Tensor:
    """log sum exp over the whole vocabulary, (C,)."""
    highest_C = vocabulary.max(logits_CV.amax(dim=-1))
    return highest_C + vocabulary.sum((logits_CV - highest_C[:, None]).exp().sum(dim=-1)).log()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's logits are at hand: keeping
    them would need the memory that chunking saves, and making them anew a second product."""

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        weight: Tensor,
        options: LossOptions,
        is_recording: bool,
    ) -> tuple[Tensor, Tensor]:
        # Evaluation: autograd asks for the gradients of weights even where it records nothing.
        needs_gradient = is_recording and any(ctx.needs_input_grad[:2])
        h_grad_ND = torch.empty_like(h_ND) if needs_gradient else None
        head_grad_VD = torch.zeros_like(head_VD, dtype=torch.float32) if needs_gradient else None
        sums = torch.zeros(2, dtype=torch.float32, device=h_ND.device)
        for start in range(0, h_ND.shape[0], CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            h_CD, targets_C = h_ND[chunk], targets_N[chunk]
            logits_CV = capped_logits(h_CD, head_VD, options.softcap)
            is_target_C = targets_C != IGNORE_INDEX
            picked_C1 = (targets_C - options.vocabulary.first)[:, None]
            is_here_C1 = (picked_C1 >= 0) & (picked_C1 < logits_CV.shape[1])
            picked_C1 = picked_C1.where(is_here_C1, 0)
            log_normaliser_C = _log_normaliser(logits_CV, options.vocabulary)
            chosen_C = options.vocabulary.sum((logits_CV.gather(1, picked_C1) * is_here_C1)[:, 0])
            z_loss_C = options.z_loss * log_normaliser_C.square()
            sums[0] += ((log_normaliser_C - chosen_C) * is_target_C).sum()
            sums[1] += (z_loss_C * is_target_C).sum()
            if h_grad_ND is None or head_grad_VD is None:
                continue
            squashed_CV = None if options.softcap is None else logits_CV / options.softcap
            grad_CV = logits_CV.sub(log_normaliser_C[:, None]).exp_()
            grad_CV *= (1 + 2 * options.z_loss * log_normaliser_C)[:, None]
            grad_CV.scatter_add_(1, picked_C1, -is_here_C1.float())
            if squashed_CV is not None:
                grad_CV *= 1 - squashed_CV.square()
            # The weight goes in before the cast: fp16 would lose what the loss scale is to keep.
            grad_CV *= (is_target_C * weight)[:, None]
            low_CV = grad_CV.to(h_ND.dtype)
            torch.mm(low_CV, head_VD, out=h_grad_ND[chunk])
            head_grad_VD += low_CV.T @ h_CD
        ctx.dtype = head_VD.dtype
        if h_grad_ND is not None and head_grad_VD is not None:
            ctx.save_for_backward(h_grad_ND, head_grad_VD)
        cross_entropy, z_loss = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(cross_entropy)
        return weight * (cross_entropy + z_loss), cross_entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        h_grad_ND, head_grad_VD = ctx.saved_tensors
        scale = grads[0]
        return (
            h_grad_ND * scale.to(h_grad_ND.dtype),
            (head_grad_VD * scale).to(ctx.dtype),
            None,
            None,
            None,
            None,
        )


def chunked_cross_entropy(
    h_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weight: Tensor, options: LossOptions
) -> LossSums:
    """Cross entropy of `softmax(h @ head^T)` against the targets, summed over target tokens.

    Adds PaLM's z-loss, `z_loss * log(Z)^2` for each target token (Chowdhery et al. 2022, section
    5). At most `CHUNK_TOKENS` x V logits exist at a time.

    Args:
        h_ND: hidden states in the compute dtype.
        head_VD: the head's weight in the compute dtype.
        targets_N: int64 token ids; `IGNORE_INDEX` where nothing is to be predicted.
        weight: fp32 scalar that multiplies the objective: loss scale over number of targets.
        options: z-loss and soft-cap.
    """
    is_recording = torch.is_grad_enabled()  # within `forward` it is off always
    return LossSums(
        *_ChunkedCrossEntropy.apply(h_ND, head_VD, targets_N, weight, options, is_recording)
    )
