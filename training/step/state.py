"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass

from triax.common.quantities import Duration, Unit


@dataclass(frozen=True)
class TrainState:
    """The counters that drive a run; all of them are in the checkpoint.

    Attributes:
        step: updates judged so far.
        tokens: sequences x seq_len behind those; drives learning rate and budget.
        cursor: the next sample's number; drives the data.
    """

    step: int = 0
    tokens: int = 0
    cursor: int = 0

    def after(self, num_sequences: int, seq_len: int) -> TrainState:
        """The state after one more step of so many sequences."""
        return TrainState(
            self.step + 1, self.tokens + num_sequences * seq_len, self.cursor + num_sequences
        )


def crossed(every: Duration | None, before: TrainState, after: TrainState) -> bool:
    """Whether a multiple of `every`, in steps or tokens, lies in (before, after].

    A time span is never crossed: what the clock decides has to be agreed between processes.
    """
    if every is None or every.unit is Unit.SECONDS:
        return False
    period = int(every.amount)
    if every.unit is Unit.STEPS:
        return after.step // period > before.step // period
    return after.tokens // period > before.tokens // period
