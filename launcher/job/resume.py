"""What a run goes on from: its newest good checkpoint, other weights, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from triax.checkpoint.folders import CheckpointInfo
from triax.checkpoint.huggingface import parameter_shapes
from triax.checkpoint.reading import check_weights
from triax.checkpoint.run_folder import recorded_table
from triax.checkpoint.store import CheckpointStore
from triax.common.errors import UserError
from triax.data.config import DataConfig
from triax.data.prepare.document_tokens import tokens_of_run
from triax.data.prepare.tokenizer import tokenizer_fingerprint
from triax.data.read.blend import Blend
from triax.data.read.identity import Identity
from triax.launcher.checks.initial_weights import compare_settings
from triax.launcher.config.resolved import absolute_paths
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.levels import describe_rates, moves_the_level
from triax.parallel.agreement import agreed
from triax.parallel.layout import Layout
from triax.training.stability.escalation import Escalation, Trouble
from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.state import TrainState


@contextmanager
def record_errors() -> Iterator[None]:
    """Turn what a record of wrong types or missing fields raises into a UserError.

    Checksums don't tell who wrote it, so a record may hold anything that JSON can.

    Raises:
        UserError: anything was raised inside the block.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "the checkpoint's record isn't one that a run writes "
            f"({type(error).__name__}: {error}); restore the checkpoint from a copy, remove it to "
            "go on from an earlier one, or choose another run.name"
        ) from error


def _state_of(record: Mapping[str, Any]) -> TrainState:
    counters = [record[name] for name in ("step", "tokens", "cursor")]
    if any(type(counter) is not int or not 0 <= counter < 2**63 for counter in counters):
        raise TypeError(f"step, tokens and cursor are {counters}")
    return TrainState(*counters)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts, from a checkpoint's record or from nothing."""

    state: TrainState
    blend: Blend
    record: Mapping[str, Any] | None
    """Of the checkpoint; None at the beginning."""
    validation: Identity | None = None
    """What the run validates on now."""
    notes: tuple[str, ...] = ()
    """What of the data goes on as what, and what has changed, in lines for the user."""

    @property
    def has_new_blend(self) -> bool:
        """Whether other data begins here, whose loss may be at another level."""
        return self.blend.is_new

    @staticmethod
    def new(
        sources: Sequence[Identity], weights: Sequence[float], validation: Identity | None = None
    ) -> ResumePoint:
        """The beginning of a run."""
        return ResumePoint(TrainState(), Blend.begin(sources, weights), None, validation)

    @staticmethod
    @record_errors()
    def of(
        record: Mapping[str, Any],
        sources: Sequence[Identity],
        weights: Sequence[float],
        validation: Identity | None = None,
    ) -> ResumePoint:
        """The point that a checkpoint was made at.

        Raises:
            UserError: as `Blend.resume`.
        """
        state = _state_of(record)
        blend = Blend.resume(record, state.cursor, sources, weights)
        notes = (*blend.notes, *_swapped(recorded_validation(record), validation))
        return ResumePoint(state, blend, record, validation, notes)

    def trouble(self, config: StabilityConfig) -> Trouble | None:
        """What was wrong with the run if this is where its budget ended it."""
        escalation = Escalation(config)
        if self.record is not None and "escalation" in self.record:
            escalation.load(self.record["escalation"])
        return escalation.trouble_at_the_end

    def record_of(self, state: TrainState) -> dict[str, Any]:
        """The part of a checkpoint's record that `of` reads, at a later state."""
        return {
            "step": state.step,
            "tokens": state.tokens,
            "cursor": state.cursor,
            **self.blend.to_json(),
            "validation": None if self.validation is None else self.validation.to_json(),
        }


def recorded_validation(record: Mapping[str, Any]) -> Identity | None:
    """What a run validated on; None where there was nothing, or an earlier version ran.

    Raises:
        UserError: the record is damaged.
    """
    found = record.get("validation")
    with record_errors():
        return None if found is None else Identity.from_json(found)


def _swapped(known: Identity | None, given: Identity | None) -> Iterator[str]:
    if known is not None and given is not None and known.shards != given.shards:
        yield (
            f"{given.path} holds other text than the run has validated on: validation losses from "
            "here on can't be compared with those before"
        )


def refuse_other_tokenizer(record: Mapping[str, Any], data: DataConfig) -> None:
    """Compare the tokenizer's contents with those that a record names, wherever they lie.

    Earlier versions recorded the path alone: what lies there now counts, if anything does.

    Raises:
        UserError: it is another tokenizer.
    """
    found = _fingerprint(data)
    path = recorded_table(recorded_table(record, "config"), "data").get("tokenizer")
    known = record.get("tokenizer")
    if known is None and path is not None:
        with suppress(UserError):
            known = tokenizer_fingerprint(path)
    if known is not None and found is not None and known != found:
        raise UserError(
            f"data.tokenizer: {data.tokenizer} isn't the tokenizer that this run began with"
            f"{'' if path is None else f' ({path} then)'}: its tokenizer.json has other contents. "
            "Put that back or name where it lies, or start a new run with another run.name"
        )


def _fingerprint(data: DataConfig) -> str | None:
    return None if data.tokenizer is None else tokenizer_fingerprint(data.tokenizer)


def find_initial_weights(
    store: CheckpointStore,
    config: RunConfig,
    group: dist.ProcessGroup | None,
    say: Callable[[str], None],
) -> CheckpointInfo | None:
    """The checkpoint that `checkpoint.init_from` names, if it does: its tensors are the model's,
    no more and no fewer, and mean the same, or other settings are permitted. Collective.

    Raises:
        UserError: there is no such checkpoint.
    """
    path = config.checkpoint.init_from
    if path is None:
        return None
    info = store.good_at(Path(path))
    for change in agreed(lambda: _check_initial(info, config), group)[0]:
        say(f"checkpoint.init_from: other settings: {change}")
    return info


def _check_initial(info: CheckpointInfo, config: RunConfig) -> list[str]:
    assert info.manifest is not None
    try:
        changes = compare_settings(info.manifest.record, config.model, config.checkpoint)
    except UserError as error:
        raise UserError(f"checkpoint.init_from: {info.path}: {error}") from None
    shapes = {f"model.{name}": shape for name, shape in parameter_shapes(config.model).items()}
    check_weights(info.path, shapes, prefix="model.")
    return changes


class RecordKeeper:
    """What a checkpoint's record holds beside the counters, and how it comes back from there.

    Args:
        config: the run's.
        layout: of this session.
        device: where the engine computes.
        resume_point: what the run goes on from; its record is put back at once.
    """

    def __init__(
        self, config: RunConfig, layout: Layout, device: torch.device, resume_point: ResumePoint
    ) -> None:
        self._config = config
        self._layout = layout
        self._resume_point = resume_point
        # A run that is shown without a tokenizer for a while still has the one it began with.
        self._tokenizer = _fingerprint(config.data) or (resume_point.record or {}).get("tokenizer")
        self._tokens = tokens_of_run(config.data)
        self.scaler = LossScaler(config.precision, device)
        self.guard = Guard(config.stability, device)
        self.escalation = Escalation(config.stability)
        self.guard_news: str | None = None
        """That the guard begins anew, and what the learning rate was and will be."""
        if resume_point.record is not None:
            self.restore(resume_point.record)
            with record_errors():
                if "escalation" in resume_point.record:
                    self.escalation.load(resume_point.record["escalation"])
                if self._is_of_another_level(resume_point.record):
                    self.guard.forget()
                    self.escalation.accepted_new_level()
                    rates = describe_rates(
                        resume_point.record["config"], config, resume_point.state.tokens
                    )
                    self.guard_news = f"the guard begins anew with this config: {rates}"

    def make(self, state: TrainState) -> dict[str, Any]:
        """The record of a checkpoint at a state; waits for the device."""
        return self._resume_point.record_of(state) | {
            "config": absolute_paths(self._config.model_dump(mode="json"), RunConfig),
            "tokenizer": self._tokenizer,
            "document_tokens": None if self._tokens is None else self._tokens.to_json(),
            "layout": asdict(self._layout),
            "loss_scaler": self.scaler.state(),
            "guard": self.guard.state(),
            "escalation": self.escalation.state(),
        }

    @record_errors()
    def restore(self, record: Mapping[str, Any]) -> None:
        """Take guard and loss scale back to a record.

        Older ones have no guard, and what it has seen under a config that moved the loss to
        another level says nothing about this one.
        """
        self.scaler.load(record["loss_scaler"])
        if "guard" in record and not self._is_of_another_level(record):
            self.guard.load(record["guard"])
        else:
            self.guard.forget()

    def _is_of_another_level(self, record: Mapping[str, Any]) -> bool:
        """Whether a record's losses were of other data, or of a config that moves them."""
        phase = self._resume_point.blend.to_json()["phases"][-1]
        return record["phases"][-1] != phase or moves_the_level(record["config"], self._config)
