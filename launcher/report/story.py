"""What is said of a run beside its curves: how it stands, where it ran, on what, laid out how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from triax.common.quantities import format_count, format_seconds
from triax.launcher.report.records import RunRecord
from triax.parallel.layout import Layout
from triax.parallel.picture import draw_mesh

Row = tuple[str, str]


def facts(record: RunRecord) -> list[Row]:
    """The run in a few rows."""
    step, tokens, loss = record.last("step"), record.last("tokens"), record.last("loss")
    rows = [("state", _state(record))]
    if step is not None:
        of_tokens = "" if tokens is None else f", {format_count(tokens)} tokens"
        rows.append(("reached", f"step {step:,.0f}{of_tokens}"))
    if loss is not None:
        rows.append(("training loss", f"{loss:.4f}"))
    if found := [row for row in record.evaluations if "loss" in row]:
        best = min(found, key=lambda row: float(row["loss"]))
        rows.append(
            ("validation loss", f"{found[-1]['loss']:.4f} after step {found[-1]['step']:,}")
        )
        if best is not found[-1]:
            rows.append(("best validation", f"{best['loss']:.4f} after step {best['step']:,}"))
    rate = record.columns.get("tokens_per_second", np.empty(0))
    if np.isfinite(rate).any():
        rows.append(("speed", f"{format_count(float(np.nanmedian(rate)))} tokens/s in the median"))
    if len(record.hours) and np.isfinite(record.hours[-1]):
        rows.append(("time in steps", format_seconds(float(record.hours[-1]) * 3600)))
    starts, refused = len(record.events_of("start")), len(record.events_of("skipped_update"))
    rows.append(("starts", str(starts)))
    rows.append(("refused updates", str(refused)))
    if record.num_unreadable:
        rows.append(("unreadable lines", f"{record.num_unreadable}, left out"))
    return rows


def _state(record: RunRecord) -> str:
    if record.ending is None:
        return "running, or killed"
    return f"{record.ending.get('reason')} (exit code {record.ending.get('code')})"


def environment_rows(record: RunRecord) -> list[Row]:
    """Where the last session ran, as its start recorded it."""
    starts = record.events_of("start")
    found = starts[-1].get("environment") if starts else None
    if not isinstance(found, Mapping):
        return []
    return [(str(name).replace("_", " "), str(value)) for name, value in found.items()]


def layout_picture(record: RunRecord) -> str:
    """The mesh of the last session in text; empty if no start tells it."""
    starts = record.events_of("start")
    try:
        layout = Layout(**starts[-1]["layout"])
        environment = starts[-1].get("environment") or {}
        return draw_mesh(layout, int(environment.get("processes_per_node", layout.world_size)))
    except Exception:  # an event of another version's, or nobody's
        return ""


def data_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Each source, its share of the samples, and how often all of it was read, by the newest
    checkpoint."""
    saved = record.checkpoint_record
    try:
        phases, cursor = saved["phases"], int(saved["cursor"])
        ends = [int(phase["start_sample"]) for phase in phases[1:]] + [cursor]
        read: dict[str, float] = {}
        shares: dict[str, float] = {}
        for phase, end in zip(phases, ends, strict=True):
            weights = {str(key): float(weight) for key, weight in phase["weights"].items()}
            shares = {key: weight / sum(weights.values()) for key, weight in weights.items()}
            for key, share in shares.items():
                read[key] = read.get(key, 0.0) + share * (end - int(phase["start_sample"]))
        return [
            {
                "path": str(source["path"]),
                "share": shares.get(key, 0.0),
                "samples": round(read.get(key, 0.0)),
                "epochs": read.get(key, 0.0) / max(1, int(source["num_windows"])),
            }
            for key, source in saved["sources"].items()
        ]
    except Exception:  # a record of another version's, or none
        return []
