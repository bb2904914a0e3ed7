"""A run's records as the JSON that the page draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from triax.launcher.config.run_config import RunConfig
from triax.launcher.report.buckets import (
    Rows,
    as_json,
    bucket_starts,
    last_of,
    smoothed,
    thin,
    thinned_json,
)
from triax.launcher.report.comparison import config_rows
from triax.launcher.report.figures import (
    EVALUATION,
    FIGURES,
    MARKED,
    NOT_DRAWN,
    NOTES,
    SECTIONS,
    describe,
)
from triax.launcher.report.records import Column, RunRecord
from triax.launcher.report.story import data_rows, environment_rows, facts, layout_picture
from triax.models.counts import flops_per_token

_MOST_NUMBERS = 100_000
"""Of all columns of the page together: some seven characters each."""
_MOST_BUCKETS, _FEWEST_BUCKETS = 2000, 200
_MOST_EVENTS = 1500
"""Rows of a run's table; of kinds with more than their share, evenly chosen ones."""
_LONGEST_EVENT = 400
_MOST_LAYERS = 64


def make_payload(
    records: Sequence[RunRecord], configs: Sequence[RunConfig | None]
) -> dict[str, Any]:
    """All that the page knows.

    Args:
        records: the runs, in the order of their colours.
        configs: each run's config, for its FLOPs; None where config.toml can't be read.
    """
    num_columns = sum(3 * (len(_drawn(record)) + 1) + 4 for record in records)
    most = min(_MOST_BUCKETS, max(_FEWEST_BUCKETS, _MOST_NUMBERS // max(1, num_columns)))
    names = dict.fromkeys(name for record in records for name in _drawn(record))
    evaluated = dict.fromkeys(
        name for record in records for row in record.evaluations for name in row
        if name not in ("step", "loss", "num_targets")
    )  # fmt: skip
    return {
        "sections": SECTIONS,
        "figures": [{"name": name, **describe(name)._asdict()} for name in _ordered(names)],
        "evaluated": [{"name": name, **describe(name, EVALUATION)._asdict()} for name in evaluated],
        "notes": NOTES,
        "config": config_rows([record.config for record in records]),
        "runs": [
            _run(record, config, most) for record, config in zip(records, configs, strict=True)
        ],
    }  # fmt: skip


def _ordered(names: Mapping[str, None]) -> list[str]:
    """Names in the order of the table of figures, unknown ones after them."""
    return [name for name in FIGURES if name in names] + [
        name for name in names if name not in FIGURES
    ]


def _drawn(record: RunRecord) -> list[str]:
    """The figures that are charts of their own: not those of layers, and refusals if any."""
    return [
        name
        for name, column in record.columns.items()
        if name not in NOT_DRAWN
        and "/" not in name
        and not (name == "skipped" and not column.any())
    ]


def _run(record: RunRecord, config: RunConfig | None, most: int) -> dict[str, Any]:
    starts = bucket_starts(record.num_rows, most)
    figures = {name: thinned_json(record.columns[name], starts) for name in _drawn(record)}
    if "loss" in figures:
        figures["loss"]["smoothed"] = as_json(last_of(smoothed(record.columns["loss"]), starts))
    events = _chosen(record.events)
    return {
        "name": record.name,
        "path": str(record.path),
        "rows": record.num_rows,
        "unreadable": record.num_unreadable,
        "ending": record.ending,
        "axes": {name: as_json(values) for name, values in _axes(record, config, starts).items()},
        "figures": figures,
        "layers": _layers(record),
        "limits": {} if config is None else _limits(config),
        "evaluations": record.evaluations,
        "events": events,
        "events_left_out": len(record.events) - len(events),
        "marks": [
            {"step": event["step"], "kind": event["event"]}
            for event in events
            if event["event"] in MARKED and isinstance(event.get("step"), int)
        ],
        "facts": facts(record),
        "environment": environment_rows(record),
        "layout": layout_picture(record),
        "data": data_rows(record),
        "samples": [
            {
                "step": event.get("step"),
                "text": f"{event.get('prompt', '')}{event.get('text')}",
            }
            for event in record.events_of("sample")[-20:]
        ],
        "forecast": next(iter(record.events_of("forecast")[-1:]), None),
    }


def _axes(record: RunRecord, config: RunConfig | None, starts: Rows) -> dict[str, Column]:
    """What a chart may be drawn over; only what is known."""
    step = record.columns["step"]
    tokens = record.columns.get("tokens", np.full(len(step), np.nan))
    axes = {"step": step, "tokens": tokens, "hours": record.hours}
    if config is not None:
        axes["flops"] = tokens * float(flops_per_token(config.model, config.data.seq_len))
    return {name: last_of(values, starts) for name, values in axes.items()}


def _chosen(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events as rows for people: all, or all of the rare kinds and some of the frequent ones."""
    counts = Counter(event["event"] for event in events)
    share = max(1, _MOST_EVENTS // max(1, len(counts)))
    seen: Counter[str] = Counter()
    rows = []
    for event in events:
        kind = event["event"]
        seen[kind] += 1
        every = -(-counts[kind] // share) if len(events) > _MOST_EVENTS else 1
        if seen[kind] % every and seen[kind] != counts[kind]:
            continue
        rest = {name: v for name, v in event.items() if name not in ("event", "time", "step")}
        rows.append(
            {
                "event": kind[:80],
                "time": event.get("time") if isinstance(event.get("time"), int | float) else None,
                "step": event.get("step") if isinstance(event.get("step"), int) else None,
                "text": "; ".join(f"{k} {_shown(v)}" for k, v in rest.items())[:_LONGEST_EVENT],
            }
        )
    return rows[-2 * _MOST_EVENTS :]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return str(value)


def _layers(record: RunRecord) -> list[dict[str, Any]]:
    """Figures that each layer has, named `figure/LAYER`, as rows of pictures."""
    found: dict[str, dict[int, Column]] = {}
    for name, column in record.columns.items():
        figure, slash, layer = name.rpartition("/")
        if slash and layer.isdecimal():
            found.setdefault(figure, {})[int(layer)] = column
    starts = bucket_starts(record.num_rows, 200)
    return [
        {
            "title": figure.replace("_", " "),
            "layers": sorted(layers)[:_MOST_LAYERS],
            "steps": as_json(last_of(record.columns["step"], starts)),
            "rows": [as_json(thin(layers[n], starts).mean) for n in sorted(layers)[:_MOST_LAYERS]],
        }
        for figure, layers in found.items()
    ]


def _limits(config: RunConfig) -> dict[str, float | None]:
    """What a figure is held against, as a dashed line."""
    threshold = config.stability.threshold if config.stability.spike_guard else None
    return {
        "grad_norm": config.optimizer.clip_norm,
        "loss_score": threshold,
        "norm_score": threshold,
    }
