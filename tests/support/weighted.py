"""A job whose targets have weights, and whose layers tell of themselves and add to the objective.

Shape letters: B sequences, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from unittest import mock

import torch
import torch.distributed as dist
from groups import shares_meshes
from torch import Tensor
from torch.distributed.tensor import DTensor
from worlds import (
    SEED,
    Case,
    Run,
    engine_class,
    make_context,
    make_engine,
    micro_batches,
    named_weights,
    recording,
    sequences,
)

from triax.models.batch import Batch
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers import block
from triax.models.layers.feed_forward import SwiGLU
from triax.models.layers.output import Collected, LayerOutput
from triax.models.layers.transformer import Transformer
from triax.training.step.step import train_step

NUM_BINS = 3
FACTOR = 1e-2


class Telling(SwiGLU):
    """Counts its inputs' signs and sums their squares, which it also adds to the objective."""

    sum_shapes: ClassVar = {"signs": (NUM_BINS,), "squares": ()}

    def forward(self, x_BTD: Tensor) -> LayerOutput:  # type: ignore[override]
        whole = x_BTD.to_local() if isinstance(x_BTD, DTensor) else x_BTD
        signs = torch.stack([(whole.sign() == sign).sum() for sign in (-1, 0, 1)])
        squares = whole.float().square().sum()
        sums = {"signs": signs, "squares": squares}
        # Megatron-core sums what the processes of the tensor axis add to their input's gradient.
        group = getattr(self.gate, "tp_group", None)
        num_summed = 1 if group is None else group.size()
        return LayerOutput(super().forward(x_BTD), sums, FACTOR * squares / num_summed)


def telling() -> AbstractContextManager[Any]:
    """Models made meanwhile have such layers."""
    return mock.patch.object(block, "make_feed_forward", Telling)


def weighted(batch: Batch) -> Batch:
    """The batch with a weight for each target, which follows from its token; some are 0."""
    weights_BT = (batch.tokens_BT % 7).float() / 4
    return replace(batch, weights_BT=weights_BT.masked_fill(~batch.is_target_BT, torch.nan))


@dataclass
class Told:
    """What such a job gave."""

    run: Run
    extra: list[dict[str, Tensor]]
    """Of every step."""
    validation: list[float]
    """After the last step: loss, targets, and their weight."""
    log_probs: dict[int, Tensor]
    """After the last step, of a validation's sequences by number."""


VALIDATION_STEP = 7


@shares_meshes
def engine_told(case: Case) -> Told:
    """The job on this process among its peers."""
    with telling():
        engine = make_engine(case, recording(engine_class(case)))
    context = make_context(case, engine)
    told = Told(Run([], [], {}, {}), [], [], {})
    for step in range(case.num_steps):
        batches = [weighted(batch) for batch in micro_batches(case, step)]
        result = train_step(context, batches, lr=case.optimizer["lr"])
        told.run.losses.append(result.loss.item())
        told.run.grad_norms.append(result.grad_norm.item())
        told.extra.append({name: value.clone() for name, value in result.extra.items()})
    told.run.gradients = engine.gradients
    told.run.parameters = named_weights(engine)
    batches = [weighted(batch) for batch in micro_batches(case, VALIDATION_STEP)]
    sums = engine.evaluate(batches)
    told.validation = [float(sums.cross_entropy / sums.total_weight), *map(float, sums[1:])]
    for batch, values_BT in zip(batches, engine.log_probs(batches), strict=True):
        for row in range(batch.tokens_BT.shape[0]):
            number = sequence_number(case, batch.tokens_BT[row])
            told.log_probs[number] = values_BT[row].cpu()
    dist.barrier()
    return told


def engines_told(cases: list[Case]) -> list[Told]:
    """Several such jobs one after the other in the same processes."""
    return [engine_told(case) for case in cases]


def validation_rows(case: Case) -> Batch:
    """The sequences of the whole validation batch."""
    first, vocab_size = VALIDATION_STEP * case.global_batch_size, case.model["vocab_size"]
    return sequences(first, case.global_batch_size, vocab_size, case.seq_len, case.documents)


def sequence_number(case: Case, tokens_T: Tensor) -> int:
    """The place of a sequence in the validation batch."""
    found = (validation_rows(case).tokens_BT == tokens_T).all(1).nonzero()
    return int(found.item())


def plain_told(case: Case) -> Told:
    """The reference: log_softmax over whole logits, a plain loop, torch's AdamW."""
    config = model_config(**case.model)
    with telling():
        model = Transformer(config)
    initialise_model(model, model.description, SEED)
    told = Told(Run([], [], {}, {}), [], [], {})
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.95), **case.optimizer,
    )  # fmt: skip
    for step in range(case.num_steps):
        first = step * case.global_batch_size
        rows = weighted(sequences(first, case.global_batch_size, config.vocab_size, case.seq_len))
        collected = Collected(model.sum_shapes)
        log_probs_BT, z_loss_BT = plain_log_probs(model, rows, collected)
        weights_BT = counted(rows)
        total = weights_BT.sum()
        loss = -(weights_BT * log_probs_BT).sum() / total
        z_loss = (weights_BT * z_loss_BT).sum()
        assert collected.objective is not None
        (loss + (z_loss + collected.objective) / total).backward()
        if step == 0:
            told.run.gradients = {n: gradient(p).clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.get_total_norm([gradient(p).double() for p in model.parameters()])
        torch.nn.utils.clip_grads_with_norm_(
            model.parameters(), case.clip_norm or 1e30, norm.float()
        )
        optimizer.step()
        optimizer.zero_grad()
        told.run.losses.append(loss.item())
        told.run.grad_norms.append(norm.item())
        told.extra.append({"z_loss": z_loss.detach()} | collected.sums)
    told.run.parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = weighted(validation_rows(case))
    with torch.no_grad():
        log_probs_BT, _ = plain_log_probs(model, rows, Collected(model.sum_shapes))
    weights_BT = counted(rows)
    loss = -(weights_BT * log_probs_BT).sum() / weights_BT.sum()
    told.validation = [float(loss), float(rows.is_target_BT.sum()), float(weights_BT.sum())]
    told.log_probs = dict(enumerate(log_probs_BT))
    return told


def gradient(parameter: Tensor) -> Tensor:
    """One that is there."""
    assert parameter.grad is not None
    return parameter.grad


def counted(rows: Batch) -> Tensor:
    """How much each token counts; 0 where it is no target."""
    assert rows.weights_BT is not None
    return rows.weights_BT.nan_to_num() * rows.is_target_BT


def plain_log_probs(model: Transformer, rows: Batch, collected: Collected) -> tuple[Tensor, Tensor]:
    """The targets' log-probabilities, 0 where there is none, and each token's z-loss."""
    h_BTD = model.hidden_states(
        rows.tokens_BT, rows.tokens_BT.shape[1], rows.document_ids_BT, None, collected
    )
    assert model.norm is not None and model.head is not None
    logits_BTV = model.head.logits(model.norm(h_BTD))
    targets_BT = rows.targets_BT.where(rows.is_target_BT, 0)
    log_probs_BT = logits_BTV.log_softmax(-1).gather(-1, targets_BT[..., None])[..., 0]
    z_loss_BT = model.config.z_loss * logits_BTV.logsumexp(-1).square()
    return log_probs_BT * rows.is_target_BT, z_loss_BT


def exported_weights(case: Case) -> tuple[dict[str, Tensor], list[Tensor]]:
    """An engine's whole weights, and its log-probabilities of the validation's sequences."""
    engine = make_engine(case)
    return named_weights(engine), engine.log_probs(micro_batches(case, VALIDATION_STEP))
