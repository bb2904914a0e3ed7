"""From run directories to the page or its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.launcher.config.loading import load_config
from triax.launcher.config.run_config import RunConfig
from triax.launcher.report.page import render_page
from triax.launcher.report.payload import make_payload
from triax.launcher.report.records import RunRecord, read_run


def build_payload(paths: Sequence[Path]) -> dict[str, Any]:
    """The data of a page about some runs.

    Raises:
        UserError: a folder holds no run.
    """
    records = [read_run(path) for path in paths]
    return make_payload(records, [_config_of(record) for record in records])


def build_page(paths: Sequence[Path], *, refresh_seconds: float = 0.0) -> str:
    """The page about some runs; see `render_page`.

    Raises:
        UserError: a folder holds no run.
    """
    title = "triax: " + ", ".join(path.resolve().name for path in paths)
    return render_page(build_payload(paths), title, refresh_seconds=refresh_seconds)


def _config_of(record: RunRecord) -> RunConfig | None:
    """None where the file is gone, or another version's."""
    try:
        return load_config(record.path / "config.toml")
    except UserError:
        return None
