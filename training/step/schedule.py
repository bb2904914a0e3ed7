"""The learning rate as a pure function of tokens. Imports no torch."""

from __future__ import annotations

import math

from triax.common.quantities import Unit
from triax.training.config import ScheduleConfig

DEFAULT_WARMUP_FRACTION = 0.01


def warmup_tokens(schedule: ScheduleConfig, total_tokens: int, tokens_per_step: int) -> float:
    """Tokens over which the rate rises: 1% of the budget unless the config says otherwise."""
    if schedule.warmup is None:
        return DEFAULT_WARMUP_FRACTION * total_tokens
    if schedule.warmup.unit is Unit.STEPS:
        return schedule.warmup.amount * tokens_per_step
    return schedule.warmup.amount


def learning_rate(
    tokens_after_step: int,
    *,
    peak: float,
    schedule: ScheduleConfig,
    total_tokens: int,
    tokens_per_step: int,
) -> float:
    """The rate of the update that brings the run to `tokens_after_step` tokens.

    The step being taken is counted, so the first step's rate is above zero and the last
    step's is exactly `min_lr_ratio * peak` (`peak` for `constant`). The rise is linear and
    reaches the peak at `warmup` tokens; a warmup of at most one step is none. Then:

    - `cosine`: half a cosine down to the end (Loshchilov and Hutter 2017).
    - `wsd`: the peak, then linear over the budget's last `decay_fraction` (warmup, stable,
      decay; Hu et al. 2024).
    - `constant`: the peak.

    A warmup that reaches into the decay gives the lower of the two.
    """
    tokens = min(tokens_after_step, total_tokens)
    warmup = warmup_tokens(schedule, total_tokens, tokens_per_step)
    rising = tokens / warmup if tokens < warmup else 1.0
    if schedule.kind == "constant":
        return peak * rising
    decay_start = warmup if schedule.kind == "cosine" else _wsd_start(schedule, total_tokens)
    if tokens <= decay_start:
        return peak * rising
    progress = (tokens - decay_start) / (total_tokens - decay_start)
    shape = 1 - progress if schedule.kind == "wsd" else (1 + math.cos(math.pi * progress)) / 2
    falling = schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape
    return peak * min(rising, falling)


def _wsd_start(schedule: ScheduleConfig, total_tokens: int) -> float:
    return (1 - schedule.decay_fraction) * total_tokens
