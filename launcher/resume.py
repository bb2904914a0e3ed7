"""What a run goes on from: its newest good checkpoint, other weights, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from triax.data.sampler import Phase
from triax.launcher.config import RunConfig
from triax.launcher.levels import describe_rates, moves_the_level
from triax.parallel.layout import Layout
from triax.training.precision import LossScaler
from triax.training.stability.escalation import Escalation
from triax.training.stability.guard import Guard
from triax.training.state import TrainState


@dataclass(frozen=True)
class Origin:
    """Where a run starts, from a checkpoint's record or from nothing."""

    state: TrainState
    phases: tuple[Phase, ...]
    record: Mapping[str, Any] | None
    """Of the checkpoint; None at the beginning."""
    has_new_blend: bool = False
    """Whether other data begins here, whose loss may be at another level."""

    @staticmethod
    def new(weights: tuple[tuple[str, float], ...]) -> Origin:
        """The beginning of a run."""
        return Origin(TrainState(), (Phase(0, weights),), None)

    @staticmethod
    def of(record: Mapping[str, Any], weights: tuple[tuple[str, float], ...]) -> Origin:
        """The point that a checkpoint was made at. Other data sources than then begin a new
        phase of the blend there."""
        state = TrainState(record["step"], record["tokens"], record["cursor"])
        phases = [Phase.from_json(phase) for phase in record["phases"]]
        has_new_blend = phases[-1].weights != weights
        if has_new_blend:
            # Two phases can't begin at one sample: an unused one gives way.
            phases = [phase for phase in phases if phase.start_sample < state.cursor]
            phases.append(Phase(state.cursor, weights))
        return Origin(state, tuple(phases), record, has_new_blend)

    def record_of(self, state: TrainState) -> dict[str, Any]:
        """The part of a checkpoint's record that `of` reads, at a later state."""
        return {
            "step": state.step,
            "tokens": state.tokens,
            "cursor": state.cursor,
            "phases": [phase.to_json() for phase in self.phases],
        }


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
        self.scaler = LossScaler(config.precision, device)
        self.guard = Guard(config.stability, device)
        self.escalation = Escalation(config.stability)
        self.guard_news: str | None = None
        """That the guard begins anew, and what the learning rate was and will be."""
        if origin.record is not None:
            self.restore(origin.record)
            if "escalation" in origin.record:
                self.escalation.load(origin.record["escalation"])
            if origin.has_new_blend or moves_the_level(origin.record["config"], config):
                self.guard.forget()
                self.escalation.accepted_new_level()
                rates = describe_rates(origin.record["config"], config, origin.state.tokens)
                self.guard_news = f"the guard begins anew with this config: {rates}"

    def make(self, state: TrainState) -> dict[str, Any]:
        """The record of a checkpoint at a state; waits for the device."""
        return self._origin.record_of(state) | {
            "config": self._config.model_dump(mode="json"),
            "layout": asdict(self._layout),
            "loss_scaler": self.scaler.state(),
            "guard": self.guard.state(),
            "escalation": self.escalation.state(),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take guard and loss scale back to a record.

        Older ones have no guard, and what it has seen under a config that moved the loss to
        another level says nothing about this one.
        """
        self.scaler.load(record["loss_scaler"])
        if "guard" in record and not moves_the_level(record["config"], self._config):
            self.guard.load(record["guard"])
        else:
            self.guard.forget()
