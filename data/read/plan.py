"""A config's phases as sample numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from triax.data.config import DataConfig, PhaseConfig
from triax.data.read.sampler import Phase


@dataclass(frozen=True)
class PlannedPhase:
    """A phase whose sources have no keys yet: they come in the config's order."""

    start_sample: int
    weights: tuple[float, ...]
    num_pieces: int = 1
    """Sequences that a sample is cut into."""
    max_epochs: tuple[float | None, ...] = ()
    """Of each source; empty caps none."""

    def keyed(self, keys: Sequence[str]) -> Phase:
        """The same of sources that go by these keys, without those of weight 0."""
        weights = zip(keys, self.weights, strict=True)
        caps = zip(keys, self.max_epochs, strict=False)
        return Phase(
            self.start_sample,
            tuple((key, weight) for key, weight in weights if weight > 0),
            self.num_pieces,
            tuple((key, most) for key, most in caps if most is not None),
        )


def whole_run(*weights: float) -> tuple[PlannedPhase, ...]:
    """A single phase."""
    return (PlannedPhase(0, weights),)


def planned_phases(data: DataConfig, global_batch_size: int) -> tuple[PlannedPhase, ...]:
    """The phases of a run from its begin; each begins with a step.

    A sample is `data.seq_len` tokens in all of them, so the start in tokens says the sample's
    number. A phase that has less than a step gives way to the next one.

    Args:
        global_batch_size: samples of a step.
    """
    phases = data.phases or (PhaseConfig(),)
    per_step = global_batch_size * data.seq_len
    starts = accumulate((phase.tokens or 0 for phase in phases[:-1]), initial=0)
    planned: dict[int, PlannedPhase] = {}
    for phase, start in zip(phases, starts, strict=True):
        start_sample = start // per_step * global_batch_size
        planned[start_sample] = PlannedPhase(
            start_sample,
            data.weights_in(phase),
            data.seq_len // data.seq_len_in(phase),
            tuple(source.max_epochs for source in data.sources),
        )
    return tuple(planned.values())
