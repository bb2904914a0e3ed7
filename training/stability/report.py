"""The page that a run leaves when it stops by itself, for someone who wasn't there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from triax.training.stability.escalation import Escalation, Refusal
from triax.training.step.guard import Reason
from triax.training.step.state import TrainState

_NUM_SHOWN = 10


def stop_report(run_dir: Path, reason: str, state: TrainState, escalation: Escalation) -> str:
    """What happened, what was tried, what it probably is, and what to do, in Markdown.

    Args:
        run_dir: the run's folder.
        reason: why it stops, in a clause.
        state: how far the run was.
        escalation: what was refused and tried.
    """
    refusals = escalation.refusals
    lines = [
        f"# {run_dir.name} stopped by itself after step {state.step}",
        "",
        f"**Why:** {reason}. Exit code 3: starting it again without a change would end here again.",
        "",
        f"**State:** {state.tokens:,} tokens, next sample {state.cursor:,}. No update of the "
        "refused steps has touched the weights; the last good checkpoint is as it was.",
        "",
        f"**Tried before:** {escalation.num_skips} updates skipped in the whole run, "
        f"rolled back {escalation.num_rollbacks} times{_ranges(escalation.skipped_ranges)}.",
        "",
    ]
    if refusals:
        lines += ["## The refused steps", "", *_table(refusals), ""]
    lines += ["## What it probably is", "", _likely_cause(escalation), ""]
    lines += ["## What to do", ""]
    lines += [f"{n}. {text}" for n, text in enumerate(_advice(run_dir, escalation), start=1)]
    return "\n".join(lines) + "\n"


def _ranges(ranges: Sequence[tuple[int, int]]) -> str:
    if not ranges:
        return ""
    return ", which jumped over samples " + ", ".join(f"{a:,} to {b - 1:,}" for a, b in ranges)


def _table(refusals: Sequence[Refusal]) -> list[str]:
    """At most ten lines: the first ones and the last."""
    shown = list(refusals)
    if len(shown) > _NUM_SHOWN:
        shown = shown[: _NUM_SHOWN - 3] + shown[-3:]
    rows = [
        "| step | samples | loss | gradient norm | deviations | refused for |",
        "|---|---|---|---|---|---|",
    ]
    for refusal in shown:
        rows.append(
            f"| {refusal.step} | {refusal.first_sample} to {refusal.last_sample} "
            f"| {refusal.loss:.4f} | {refusal.grad_norm:.4g} | {refusal.score:.1f} "
            f"| {Reason(refusal.reasons).describe()} |"
        )
    if len(refusals) > len(shown):
        rows.append(f"\n{len(refusals)} of late; those in between are in `events.jsonl`.")
    return rows


def _likely_cause(escalation: Escalation) -> str:
    refusals = escalation.refusals
    if not refusals:
        return "What it says above; `events.jsonl` has the figures."
    if any(refusal.reasons & Reason.NON_FINITE for refusal in refusals):
        if all(math.isfinite(refusal.loss) for refusal in refusals):
            return (
                "The loss is finite and the gradient isn't: an overflow in the backward pass "
                "(fp16, or a bad kernel), or a process with a broken device. The `skipped_update` "
                "events name the ranks whose own loss was not finite, if any."
            )
        return (
            "The forward pass gives values that are not finite: weights that have overflowed, a "
            "broken device (the `skipped_update` events name the ranks), or damaged data."
        )
    if escalation.looks_like_new_level:
        return (
            "A sustained shift of level, not a spike: weights from before the trouble refuse every "
            "batch, by about as much each time. The data has changed there."
        )
    return (
        "The loss or the gradient norm keeps leaving its level at these batches: training is "
        "unstable (learning rate, precision, initialisation), or this stretch of data is bad."
    )


def _advice(run_dir: Path, escalation: Escalation) -> list[str]:
    advice = []
    if escalation.refusals:
        sample = escalation.refusals[0].first_sample
        advice.append(f"Look at the text: `triax data inspect {run_dir} --sample {sample}`.")
    advice.append(f"Look at the processes: `triax diagnose {run_dir}`.")
    config = f"`triax train {run_dir / 'config.toml'}"
    if not escalation.refusals:
        advice.append("Take that machine out of the job and have its memory tested.")
        advice.append(f"Go on from the last good checkpoint: {config}`.")
        return advice
    if escalation.looks_like_new_level:
        advice.append(f"If the data is meant to be so: {config} --stability.on_shift=accept`.")
    advice.append(
        "If training is unstable: a lower `optimizer.lr` or a longer warmup, `model.qk_norm` and "
        "`model.z_loss` in a new run, or `--stability.rollback_lr_factor=0.5` in this one."
    )
    advice.append(
        f"To let it try further batches: {config} --stability.max_rollbacks="
        f"{escalation.num_rollbacks + 5}`; it goes on from the last checkpoint."
    )
    return advice
