"""What a run goes on from: its newest good checkpoint, other weights, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triax.data.sampler import Phase
from triax.training.state import TrainState


@dataclass(frozen=True)
class Origin:
    """Where a run starts, from a checkpoint's record or from nothing."""

    state: TrainState
    phases: tuple[Phase, ...]
    loss_scaler: dict[str, float] | None

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
        if phases[-1].weights != weights:
            # Two phases can't begin at one sample: an unused one gives way.
            phases = [phase for phase in phases if phase.start_sample < state.cursor]
            phases.append(Phase(state.cursor, weights))
        return Origin(state, tuple(phases), record["loss_scaler"])

    def record(self, state: TrainState) -> dict[str, Any]:
        """The part of a checkpoint's record that `of` reads, at a later state."""
        return {
            "step": state.step,
            "tokens": state.tokens,
            "cursor": state.cursor,
            "phases": [phase.to_json() for phase in self.phases],
        }
