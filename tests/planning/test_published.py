"""Forecasts beside published speeds; the table and its sources: benchmarks/published_runs.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan_published.py"


@pytest.fixture(scope="module")
def published() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_published", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_most_published_runs_are_forecast_within_15_percent(published: ModuleType) -> None:
    rows = published.load_rows()
    assert len(rows) >= 40
    near = [row for row in rows if abs(row.miss) <= 0.15]
    assert len(near) >= 0.9 * len(rows), [(row.name, row.miss) for row in rows if row not in near]
    assert all(abs(row.miss) < 0.4 for row in rows)


def test_every_run_has_a_source_and_every_miss_an_explanation(published: ModuleType) -> None:
    table = published.load_table()
    rows = published.load_rows()
    assert {row.source for row in rows} == set(table["sources"])
    assert all(row.miss_note for row in rows if abs(row.miss) > published.TOLERANCE)


def test_the_page_shows_what_the_command_prints(
    published: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    published.main()
    page = (SCRIPT.parents[1] / "docs" / "planning.md").read_text(encoding="utf-8")
    printed = [f"    {line}".rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(printed) in page
