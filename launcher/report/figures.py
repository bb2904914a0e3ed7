"""What the page says of each figure; one that has no line here is drawn under its own name."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A figure of metrics.jsonl or of an evaluation, for people."""

    section: str
    title: str
    note: str = ""
    """What it means, in a sentence."""
    is_log: bool = False
    """Drawn on a logarithmic axis at first."""


LOSS, UPDATES, SPEED = "Loss", "Updates", "Speed and memory"
EXPERTS, EVALUATION, OTHERS = "Experts", "Evaluation", "Other figures"
SECTIONS = (LOSS, UPDATES, SPEED, EXPERTS, EVALUATION, OTHERS)

FIGURES = {
    "loss": Figure(LOSS, "Loss (nats per token)", "Mean cross entropy of a step's targets."),
    "lr": Figure(UPDATES, "Learning rate", "What the schedule gave, times recovery's factor."),
    "grad_norm": Figure(
        UPDATES, "Gradient norm", "Before clipping; the dashed line is optimizer.clip_norm.", True
    ),
    "loss_score": Figure(
        UPDATES,
        "Guard: loss score",
        "Robust deviations above the recent median; above the dashed limit a step is refused.",
    ),
    "norm_score": Figure(
        UPDATES,
        "Guard: norm score",
        "The same of the gradient norm's logarithm; above the dashed limit a step is refused.",
    ),
    "loss_scale": Figure(UPDATES, "Loss scale", "Of fp16: halved after an overflow.", True),
    "tokens_per_second": Figure(
        SPEED, "Tokens per second", "Of steps alone, of all processes together."
    ),
    "mfu": Figure(SPEED, "Model FLOPs utilization", "Share of the devices' peak."),
    "memory_gib": Figure(SPEED, "Memory (GiB)", "The most that rank 0 had used so far."),
    "num_targets": Figure(OTHERS, "Targets a step", "Tokens that the loss counted."),
    "skipped": Figure(OTHERS, "Refused updates", "1 where the guard refused an update."),
    "z_loss": Figure(OTHERS, "z-loss", "Mean squared logarithm of the softmax's divisor."),
    "expert_load_max": Figure(
        EXPERTS, "Busiest expert", "Its tokens over its layer's mean, where that is highest."
    ),
    "dead_experts": Figure(EXPERTS, "Experts without tokens"),
    "balance_loss": Figure(EXPERTS, "Balance loss", "1 where all experts have equal loads."),
    "router_entropy": Figure(EXPERTS, "Router entropy (nats)"),
    "dropped_tokens": Figure(EXPERTS, "Dropped tokens"),
}
"""By name. The order is that of the page."""

NOT_DRAWN = ("step", "tokens", "cursor")
"""Axes, and what follows from them."""

NOTES = {
    "start": "A session began here, with this layout, after an earlier one had stopped.",
    "checkpoint": "A checkpoint was saved; training went on meanwhile.",
    "checkpoint_failed": "A save failed; the last good checkpoint stayed.",
    "checkpoint_refused": "Weights that aren't finite were not saved.",
    "evaluation": "The validation data were read.",
    "skipped_update": "The guard refused an update: the weights stayed as they were.",
    "rollback": "The run went back to an earlier checkpoint, and past the data since.",
    "new_level": "The guard took the loss's new level for the usual one.",
    "straggler": "A process was slower than its peers.",
    "profile": "Steps were profiled; the files are in the run's profile/.",
    "hang": "Nothing moved for longer than granted; stacks are in logs/.",
    "stop": "The run stopped by itself.",
    "damaged_data": "Data were found damaged.",
    "data_differs": "Processes that must read the same samples did not.",
    "silent_corruption": "Replicas that must be equal were not.",
    "forecast": "The planner's figures, beside what the first steps measured.",
    "phase": "Other data, or other shares of them, from here on.",
}
"""What an event means, by its kind."""

MARKED = frozenset(NOTES) - {"evaluation", "forecast"}
"""Events that are drawn as lines over the charts."""


def describe(name: str, section: str | None = None) -> Figure:
    """The figure of a name, known or not."""
    if name in FIGURES:
        return FIGURES[name]
    title = name.replace("_", " ")
    return Figure(section or (EXPERTS if "expert" in name else OTHERS), title)
