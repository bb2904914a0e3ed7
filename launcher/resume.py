"""What a run goes on from: its newest good checkpoint, other weights, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from triax.common.errors import UserError
from triax.data.blend import Blend
from triax.data.config import DataConfig
from triax.data.identity import Identity
from triax.data.tokenizer import tokenizer_fingerprint
from triax.launcher.config import RunConfig
from triax.parallel.layout import Layout
from triax.training.precision import LossScaler
from triax.training.stability.config import StabilityConfig
from triax.training.stability.escalation import Escalation, Trouble
from triax.training.stability.guard import Guard
from triax.training.state import TrainState


@dataclass(frozen=True)
class Origin:
    """Where a run starts, from a checkpoint's record or from nothing."""

    state: TrainState
    blend: Blend
    record: Mapping[str, Any] | None
    """Of the checkpoint; None at the beginning."""

    @property
    def has_new_blend(self) -> bool:
        """Whether other data begins here, whose loss may be at another level."""
        return self.blend.is_new

    @staticmethod
    def new(sources: Sequence[Identity], weights: Sequence[float]) -> Origin:
        """The beginning of a run."""
        return Origin(TrainState(), Blend.begin(sources, weights), None)

    @staticmethod
    def of(
        record: Mapping[str, Any], sources: Sequence[Identity], weights: Sequence[float]
    ) -> Origin:
        """The point that a checkpoint was made at.

        Raises:
            UserError: as `Blend.resume`.
        """
        state = TrainState(record["step"], record["tokens"], record["cursor"])
        return Origin(state, Blend.resume(record, state.cursor, sources, weights), record)

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
        }


def refuse_other_tokenizer(record: Mapping[str, Any], data: DataConfig) -> None:
    """Compare the tokenizer's contents with those that a record names, wherever they lie.

    Earlier versions recorded the path alone: what lies there now counts, if anything does.

    Raises:
        UserError: it is another tokenizer.
    """
    found = _fingerprint(data)
    path = record["config"]["data"].get("tokenizer")
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


class RecordKeeper:
    """What a checkpoint's record holds beside the counters, and how it comes back from there.

    Args:
        config: the run's.
        layout: of this session.
        device: where the engine computes.
        origin: what the run goes on from; its record is put back at once.
    """

    def __init__(
        self, config: RunConfig, layout: Layout, device: torch.device, origin: Origin
    ) -> None:
        self._config = config
        self._layout = layout
        self._origin = origin
        # A run that is shown without a tokenizer for a while still has the one it began with.
        self._tokenizer = _fingerprint(config.data) or (origin.record or {}).get("tokenizer")
        self.scaler = LossScaler(config.precision, device)
        self.guard = Guard(config.stability, device)
        self.escalation = Escalation(config.stability)
        if origin.record is not None:
            self.restore(origin.record)
            if "escalation" in origin.record:
                self.escalation.load(origin.record["escalation"])
        if origin.has_new_blend:
            self.guard.forget()

    def make(self, state: TrainState) -> dict[str, Any]:
        """The record of a checkpoint at a state; waits for the device."""
        return self._origin.record_of(state) | {
            "config": self._config.model_dump(mode="json"),
            "tokenizer": self._tokenizer,
            "layout": asdict(self._layout),
            "loss_scaler": self.scaler.state(),
            "guard": self.guard.state(),
            "escalation": self.escalation.state(),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take guard and loss scale back to a record; older ones have no guard."""
        self.scaler.load(record["loss_scaler"])
        if "guard" in record:
            self.guard.load(record["guard"])
