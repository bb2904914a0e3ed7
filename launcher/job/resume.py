"""What a run goes on from: its newest good checkpoint, other weights, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from triax.checkpoint.run_folder import recorded_table
from triax.common.errors import UserError, record_errors
from triax.data.config import DataConfig
from triax.data.prepare.tokenizer import tokenizer_fingerprint
from triax.data.read.blend import Blend
from triax.data.read.identity import Identity, recorded_validation
from triax.data.read.plan import PlannedPhase
from triax.training.stability.escalation import Escalation, Trouble
from triax.training.stability_config import StabilityConfig
from triax.training.step.state import TrainState


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
        sources: Sequence[Identity],
        plan: Sequence[PlannedPhase],
        validation: Identity | None = None,
    ) -> ResumePoint:
        """The beginning of a run."""
        return ResumePoint(TrainState(), Blend.begin(sources, plan), None, validation)

    @staticmethod
    @record_errors()
    def of(
        record: Mapping[str, Any],
        sources: Sequence[Identity],
        plan: Sequence[PlannedPhase],
        validation: Identity | None = None,
    ) -> ResumePoint:
        """The point that a checkpoint was made at.

        Raises:
            UserError: as `Blend.resume`.
        """
        state = _state_of(record)
        blend = Blend.resume(record, state.cursor, sources, plan)
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
    found = fingerprint_of(data)
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


def fingerprint_of(data: DataConfig) -> str | None:
    """Of the contents of the tokenizer that a config names; None without one."""
    return None if data.tokenizer is None else tokenizer_fingerprint(data.tokenizer)
