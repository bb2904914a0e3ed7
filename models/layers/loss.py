"""Head and cross entropy in one, in chunks of tokens, so that the logits never exist at once.

Shape letters: N tokens of a micro-batch, C tokens of a chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from triax.common.tokens import IGNORE_INDEX

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at the same time, unless `LossOptions` say otherwise."""


class LossSums(NamedTuple):
    """Sums over the target tokens of a micro-batch, each times its own weight; scalars."""

    objective: Tensor
    """Weight x (cross entropy + z-loss), fp32: what is differentiated."""
    cross_entropy: Tensor
    """Not multiplied by `weight` and without gradient, fp64: what is reported, in nats."""
    z_loss: Tensor
    """Likewise, its factor included."""
    log_probs_N: Tensor
    """The targets' log-probabilities, fp32 without gradient; 0 where there is no target. In their
    place the likeliest tokens where `LossOptions.tells_likeliest`."""


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


class ChunkStatistics(NamedTuple):
    """What the loss of a chunk needs of its logits, over the rows of the head that are here."""

    logits_CV: Tensor
    """In the compute dtype, before the soft-cap."""
    highest_C: Tensor
    sum_C: Tensor
    """Of exp(logit - highest)."""
    chosen_C: Tensor
    """The target's logit; 0 where the target's row is elsewhere."""


def _capped(logits_CV: Tensor, softcap: float | None) -> Tensor:
    logits_CV = logits_CV.float()
    return logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)


def capped_logits(h_CD: Tensor, head_VD: Tensor, softcap: float | None) -> Tensor:
    """Logits (C, V) in fp32, squashed to `cap * tanh(logits / cap)` (Gemma 2) if asked."""
    return _capped(h_CD @ head_VD.T, softcap)


def chunk_statistics(
    h_CD: Tensor, head_VD: Tensor, rows_C: Tensor, softcap: float | None
) -> ChunkStatistics:
    """One pass over a chunk's logits.

    Args:
        h_CD, head_VD: in the compute dtype.
        rows_C: int64 rows of the targets in `head_VD`; those out of its range are elsewhere.
        softcap: as in `LossOptions`.
    """
    logits_CV = h_CD @ head_VD.T
    capped_CV = _capped(logits_CV, softcap)
    highest_C1 = capped_CV.amax(dim=-1, keepdim=True)
    sum_C1 = (capped_CV - highest_C1).exp().sum(dim=-1, keepdim=True)
    is_here_C = (rows_C >= 0) & (rows_C < head_VD.shape[0])
    picked_C1 = rows_C.where(is_here_C, 0)[:, None]
    chosen_C = _capped(logits_CV.gather(1, picked_C1), softcap)[:, 0] * is_here_C
    return ChunkStatistics(logits_CV, highest_C1[:, 0], sum_C1[:, 0], chosen_C)


def chunk_gradient(
    logits_CV: Tensor,
    rows_C: Tensor,
    log_normaliser_C: Tensor,
    weight_C: Tensor,
    options: LossOptions,
) -> Tensor:
    """The objective's gradient by the logits before the soft-cap, written over them; one pass too.

    Args:
        logits_CV, rows_C: as in `chunk_statistics`.
        log_normaliser_C: log sum exp over the whole vocabulary, fp32.
        weight_C: fp32; what each token's objective is multiplied by.
        options: z-loss and soft-cap.
    """
    capped_CV = _capped(logits_CV, options.softcap)
    columns_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    by_normaliser_C = 1 + 2 * options.z_loss * log_normaliser_C
    grad_CV = (capped_CV - log_normaliser_C[:, None]).exp_().mul_(by_normaliser_C[:, None])
    # Not a scatter: the compiler could not make it part of the pass.
    grad_CV = torch.where(columns_V == rows_C[:, None], grad_CV - 1, grad_CV)
    if options.softcap is not None:
        grad_CV *= 1 - (capped_CV / options.softcap).square()
    # The weight goes in before the cast: fp16 would lose what the loss scale is to keep.
    return torch.mul(grad_CV, weight_C[:, None], out=logits_CV)


@dataclass(frozen=True)
class LossOptions:
    """What the model adds to plain cross entropy (see `ModelConfig`), and who holds the head."""

    z_loss: float = 0.0
    softcap: float | None = None
    vocabulary: Vocabulary = field(default_factory=WholeVocabulary)
    chunk_tokens: int = CHUNK_TOKENS
    tells_likeliest: bool = False
    """Whether the likeliest token is told at each target, as a number, in place of the target's
    log-probability."""
    statistics: Callable[..., ChunkStatistics] = chunk_statistics
    """This function, or a compiled one: the logits then are read once, not once an operation."""
    gradient: Callable[..., Tensor] = chunk_gradient
    """Likewise."""


def _log_normaliser(chunk: ChunkStatistics, vocabulary: Vocabulary) -> Tensor:
    """log sum exp over the whole vocabulary, (C,)."""
    highest_C = vocabulary.max(chunk.highest_C.clone())
    return highest_C + vocabulary.sum(chunk.sum_C * (chunk.highest_C - highest_C).exp()).log()


def likeliest(logits_CV: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The likeliest tokens of the whole vocabulary as numbers (C,), exact in fp32 up to 2^24; of
    equals in different parts the first.

    Args:
        logits_CV: of this process's part of the vocabulary.
    """
    highest_C, rows_C = logits_CV.max(dim=-1)  # exact in each dtype, and an fp32 copy is large
    highest_C = highest_C.float()
    is_elsewhere_C = highest_C < vocabulary.max(highest_C.clone())
    least_C = (-(rows_C + vocabulary.first).float()).masked_fill(is_elsewhere_C, -torch.inf)
    return -vocabulary.max(least_C)


def _told(chunk: ChunkStatistics, log_probs_C: Tensor, options: LossOptions) -> Tensor:
    """What is said of each token: its target's log-probability, or the likeliest token."""
    if options.tells_likeliest:
        return likeliest(chunk.logits_CV, options.vocabulary)
    return log_probs_C


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """`total + a @ b` in fp32, in place; a total of None is 0. On CUDA the product is added within
    the matrix product's kernel, and never rounded to the factors' dtype."""
    # Not to be compiled: torch 2.11 can't trace an `addmm` with a dtype.
    if not a.is_cuda or a.dtype == torch.float32:
        return (a @ b).float() if total is None else total.add_(a @ b)
    if total is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's logits are at hand: keeping
    them would need the memory that chunking saves, and making them anew a second product."""

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor | None,
        weight: Tensor,
        options: LossOptions,
        is_recording: bool,
    ) -> LossSums:
        # Evaluation: autograd asks for the gradients of weights even where it records nothing.
        needs_gradient = is_recording and any(ctx.needs_input_grad[:2])
        h_grad_ND = torch.empty_like(h_ND) if needs_gradient else None
        head_grad_VD: Tensor | None = None
        # Any number of chunks and micro-batches is added to it.
        sums = torch.zeros(2, dtype=torch.float64, device=h_ND.device)
        log_probs_N = torch.empty(h_ND.shape[0], dtype=torch.float32, device=h_ND.device)
        for start in range(0, h_ND.shape[0], options.chunk_tokens):
            part = slice(start, start + options.chunk_tokens)
            h_CD, rows_C = h_ND[part], targets_N[part] - options.vocabulary.first
            is_target_C = targets_N[part] != IGNORE_INDEX
            counts_C = is_target_C
            if weights_N is not None:
                counts_C = weights_N[part].float().where(is_target_C, 0)
            chunk = options.statistics(h_CD, head_VD, rows_C, options.softcap)
            log_normaliser_C = _log_normaliser(chunk, options.vocabulary)
            chosen_C = options.vocabulary.sum(chunk.chosen_C)
            told_C = _told(chunk, chosen_C - log_normaliser_C, options)
            log_probs_N[part] = told_C.where(is_target_C, 0)
            sums[0] += ((log_normaliser_C - chosen_C) * counts_C).sum()
            sums[1] += (options.z_loss * log_normaliser_C.square() * counts_C).sum()
            if h_grad_ND is None:
                continue
            weight_C = counts_C * weight
            grad_CV = options.gradient(chunk.logits_CV, rows_C, log_normaliser_C, weight_C, options)
            torch.mm(grad_CV, head_VD, out=h_grad_ND[part])
            if not ctx.needs_input_grad[1]:
                continue  # the head is frozen
            if h_CD.shape[0] == h_ND.shape[0]:
                head_grad_VD = grad_CV.T @ h_CD  # nothing is added, so nothing rounded in between
            else:
                head_grad_VD = _plus_product(head_grad_VD, grad_CV.T, h_CD)
        ctx.dtype = head_VD.dtype
        if h_grad_ND is not None:
            ctx.save_for_backward(h_grad_ND, head_grad_VD)
        cross_entropy, z_loss = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(cross_entropy, z_loss, log_probs_N)
        objective = weight * (cross_entropy + z_loss).float()
        return LossSums(objective, cross_entropy, z_loss, log_probs_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_grad_ND, head_grad_VD = ctx.saved_tensors
        scaled = None
        if head_grad_VD is not None:
            scaled = torch.empty_like(head_grad_VD, dtype=ctx.dtype)
            torch.mul(head_grad_VD, grads[0], out=scaled)  # multiplies and casts in one pass
        h_grad_ND = h_grad_ND * grads[0].to(h_grad_ND.dtype)
        return h_grad_ND, scaled, None, None, None, None, None


def chunked_cross_entropy(
    h_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    weight: Tensor,
    options: LossOptions,
    weights_N: Tensor | None = None,
) -> LossSums:
    """Cross entropy of `softmax(h @ head^T)` against the targets, summed over target tokens.

    Adds PaLM's z-loss, `z_loss * log(Z)^2` for each target token (Chowdhery et al. 2022, section
    5). At most `options.chunk_tokens` x V logits exist at a time.

    Args:
        h_ND: hidden states in the compute dtype.
        head_VD: the head's weight in the compute dtype.
        targets_N: int64 token ids; `IGNORE_INDEX` where nothing is to be predicted.
        weight: fp32 scalar that multiplies the objective: loss scale over the targets' weight.
        options: z-loss and soft-cap.
        weights_N: what each target's own terms are multiplied by; None for 1.
    """
    is_recording = torch.is_grad_enabled()  # within `forward` it is off always
    return LossSums(
        *_ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            h_ND, head_VD, targets_N, weights_N, weight, options, is_recording
        )
    )
