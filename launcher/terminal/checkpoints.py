"""Checkpoints as a person reads them. Imports no torch."""

from __future__ import annotations

from triax.checkpoint.folders import CheckpointInfo
from triax.common.quantities import format_count, format_seconds

CHECKPOINT_COLUMNS = f"{'step':>10}  {'tokens':>8}  {'size':>9}  {'age':>16}  files"


def checkpoint_row(info: CheckpointInfo, state: str) -> str:
    """A line under `CHECKPOINT_COLUMNS`."""
    tokens, size, age = "?", "?", "?"
    if info.manifest is not None:
        recorded = info.manifest.record.get("tokens")
        tokens = "-"
        if isinstance(recorded, int) and 0 <= recorded < 2**63:
            tokens = format_count(recorded)
        size = _format_bytes(info.manifest.num_bytes)
        age = format_seconds(max(0.0, info.manifest.age_seconds))
    return f"{info.step:>10}  {tokens:>8}  {size:>9}  {age:>16}  {state}"


def _format_bytes(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"
