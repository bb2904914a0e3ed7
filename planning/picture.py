"""A plan as a picture: memory by pipeline rank, and the time of the fastest layouts by part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.planning.devices import GIB
from triax.planning.forecast import Forecast
from triax.planning.memory import PARTS
from triax.planning.search import Outcome
from triax.planning.time import TIME_PARTS

_MOST_LAYOUTS = 6


def save_picture(forecast: Forecast, ranked: Sequence[Outcome], path: Path) -> None:
    """Draw it; the ending of the name says which format.

    Raises:
        UserError: it can't be written there.
    """
    from matplotlib.figure import Figure  # slow to import, and few plans are drawn

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_memory(left, forecast)
    _draw_time(right, (list(ranked) or [forecast.outcome])[:_MOST_LAYOUTS])
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the picture can't be written: {error}") from error


def _draw_memory(axes: Any, forecast: Forecast) -> None:
    ranks = [each.pipeline_rank for each in forecast.ranks]
    bottoms = [0.0] * len(ranks)
    for part in PARTS:
        values = [getattr(each.memory, part) / GIB for each in forecast.ranks]
        if not any(values):
            continue
        axes.bar(ranks, values, bottom=bottoms, label=_shown(part), color=_color(part, PARTS))
        bottoms = [a + b for a, b in zip(bottoms, values, strict=True)]
    usable = forecast.device.usable_bytes / GIB
    axes.axhline(usable, color="black", linestyle="--", linewidth=1)
    axes.text(ranks[0] - 0.4, usable * 1.01, f"usable: {usable:.0f} GiB", fontsize=8)
    axes.set_ylim(0, 1.1 * max(usable, *bottoms))
    axes.set_xticks(ranks if len(ranks) <= 16 else ranks[:: len(ranks) // 8])
    axes.set_xlabel("pipeline rank")
    axes.set_ylabel("GiB")
    axes.set_title("Memory of a process")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_time(axes: Any, outcomes: Sequence[Outcome]) -> None:
    names = [_layout(each) for each in outcomes]
    lefts = [0.0] * len(names)
    for part in TIME_PARTS:
        values = [getattr(each.time, part) for each in outcomes]
        if max(values) < 0.001 * outcomes[0].time.total:
            continue
        color = _color(part, TIME_PARTS)
        axes.barh(names, values, left=lefts, label=_shown(part), color=color)
        lefts = [a + b for a, b in zip(lefts, values, strict=True)]
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("seconds")
    axes.set_title("Time of a step, the fastest layouts")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.15))


def _layout(outcome: Outcome) -> str:
    parallel = outcome.setup.parallel
    text = f"tp {parallel.tensor}, pp {parallel.pipeline}, ZeRO {parallel.zero_stage}"
    if parallel.pipeline > 1:
        text += f"\n{parallel.pipeline_schedule}"
        if parallel.pipeline_schedule.startswith("interleaved"):
            text += f" x {parallel.stages_per_rank}"
    batch = outcome.setup.batch.micro_batch_size
    return f"{text}\nmb {batch}, {parallel.activation_checkpointing}"


def _shown(part: str) -> str:
    return part.replace("_", " ").replace("zero", "ZeRO")


def _color(part: str, parts: Sequence[str]) -> str:
    """Each part its own; slack, which is nothing's, light."""
    return "lightgray" if part == "slack" else f"C{parts.index(part) % 10}"
