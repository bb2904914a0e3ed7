"""What a run would read of each source, told before it starts. Imports no torch.

The checks are as `triax.launcher.checks.sections` describes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from triax.common.errors import UserError
from triax.common.quantities import format_count
from triax.data.config import DataConfig
from triax.data.read.opening import open_sources
from triax.data.read.plan import planned_phases
from triax.data.read.sampler import Sampler, block_quotas
from triax.launcher.config.problems import Problem
from triax.launcher.config.run_config import RunSection
from triax.models.config import ModelConfig
from triax.training.config import BatchConfig, BudgetConfig
from triax.training.step.budget import resolve_budget

MAX_USEFUL_EPOCHS = 4
"""Repeating data up to about four times is nearly as good as new data (Muennighoff et al. 2023)."""


class Reading(NamedTuple):
    """Of one source, over a whole run."""

    path: str
    num_tokens: int
    """That are read."""
    num_there: int
    """In its windows."""
    used_up_at: int | None
    """Tokens of the run at which it has been read as often as it may; None: never."""

    @property
    def epochs(self) -> float:
        """How often it is read."""
        return self.num_tokens / self.num_there

    def describe(self) -> str:
        """In a line."""
        end = "" if self.used_up_at is None else f", used up at {format_count(self.used_up_at)}"
        return (
            f"{self.epochs:.3g} epochs, {format_count(self.num_tokens)} of "
            f"{format_count(self.num_there)} tokens{end}: {self.path}"
        )


def num_windows(data: DataConfig, vocab_size: int) -> dict[str, int]:
    """Of each source, by path.

    Raises:
        UserError: one is not there yet, or damaged.
    """
    opened = open_sources(data, vocab_size)
    paths = [source.path for source in data.sources]
    return {path: each.num_windows for path, each in zip(paths, opened, strict=True)}


def readings(
    data: DataConfig, global_batch_size: int, seed: int, total: int, windows: dict[str, int]
) -> list[Reading]:
    """What a run of so many tokens reads of each source, in the config's order.

    Args:
        windows: from `num_windows`.

    Raises:
        UserError: max_epochs leave less than that.
    """
    phases = [phase.keyed(list(windows)) for phase in planned_phases(data, global_batch_size)]
    num_samples = total // data.seq_len
    begun = [phase for phase in phases if phase.start_sample < num_samples]
    sampler = Sampler(seed, begun, windows)
    sampler.locate(num_samples - 1)
    read = sampler.consumed(num_samples)
    ends = {path: at * data.seq_len for path, at in sampler.used_up.items() if at <= num_samples}
    return [
        Reading(path, read[path] * data.seq_len, count * data.seq_len, ends.get(path))
        for path, count in windows.items()
    ]


def weights_fill_blocks(data: DataConfig) -> Iterator[Problem]:
    """Every source gets a sample of each block of every phase's blend."""
    for phase in planned_phases(data, global_batch_size=1):
        try:
            block_quotas(phase.keyed([source.path for source in data.sources]).weights)
        except UserError as error:
            yield Problem("data.sources", str(error).removeprefix("data.sources: "))
            return


def caps_leave_enough(
    run: RunSection, budget: BudgetConfig, model: ModelConfig, batch: BatchConfig, data: DataConfig
) -> Iterator[Problem]:
    """What may be read of the sources is enough for every phase of the run."""
    if all(source.max_epochs is None for source in data.sources):
        return
    total = _total(budget, model, batch, data)
    try:
        windows = num_windows(data, model.vocab_size)
    except UserError:
        return  # `shards_are_sane` says it, or they will be made
    try:
        readings(data, batch.global_batch_size, run.seed, total, windows)
    except UserError as error:
        yield Problem("data.sources", str(error).removeprefix("data.sources: "))


def budget_repeats_data(
    run: RunSection, budget: BudgetConfig, model: ModelConfig, batch: BatchConfig, data: DataConfig
) -> Iterator[Problem]:
    """A source is read more often than repeating helps."""
    total = _total(budget, model, batch, data)
    try:
        windows = num_windows(data, model.vocab_size)
        found = readings(data, batch.global_batch_size, run.seed, total, windows)
    except UserError:
        return
    for number, reading in enumerate(found):
        if reading.epochs > MAX_USEFUL_EPOCHS:
            yield Problem(
                f"data.sources.{number}",
                f"the budget repeats {reading.path} {reading.epochs:,.1f} times; beyond about "
                f"{MAX_USEFUL_EPOCHS} epochs repeated data is worth much less than new data "
                "(Muennighoff et al. 2023)",
            )


def phases_are_reached(
    budget: BudgetConfig, model: ModelConfig, batch: BatchConfig, data: DataConfig
) -> Iterator[Problem]:
    """Every phase begins before the budget ends."""
    total = _total(budget, model, batch, data)
    starts = accumulate((phase.tokens or 0 for phase in data.phases[:-1]), initial=0)
    for number, start in enumerate(starts):
        if start >= total and number < len(data.phases):
            yield Problem(
                f"data.phases.{number}",
                f"begins after {format_count(start)} tokens, and the budget ends with "
                f"{format_count(total)}: it is never read",
            )
    last = data.phases[-1].tokens if data.phases else None
    if last is not None and sum(phase.tokens or 0 for phase in data.phases) < total:
        yield Problem(
            f"data.phases.{len(data.phases) - 1}.tokens",
            f"the last phase goes on to the budget's end, {format_count(total)} tokens; leave it "
            "out",
        )


def _total(budget: BudgetConfig, model: ModelConfig, batch: BatchConfig, data: DataConfig) -> int:
    per_step = batch.global_batch_size * data.seq_len
    return resolve_budget(budget, model, per_step).num_tokens
