"""Counts and durations as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from triax.common.quantities import (
    MAX_COUNT,
    CountedField,
    Duration,
    TimeField,
    Unit,
    format_count,
    format_seconds,
    parse_count,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [(7, 7), ("7", 7), ("1M", 10**6), ("20B", 2 * 10**10), ("1.5k", 1500), ("10_000", 10_000),
     ("2 T", 2 * 10**12), ("0.001M", 1000)],
)  # fmt: skip
def test_counts(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "B", "1.5", "-3", "1e6", "1 5", "3X", True, 1.5, -1, "9" * 500, 10**19, "0.5"]
)
def test_what_is_no_count(text: object) -> None:
    with pytest.raises(ValueError, match=r"count|whole number") as caught:
        parse_count(text)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 120


@given(st.integers(0, MAX_COUNT))
def test_counts_are_exact(count: int) -> None:
    assert parse_count(str(count)) == count


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("500 steps", 500, Unit.STEPS), ("1 step", 1, Unit.STEPS), ("1B tokens", 10**9, Unit.TOKENS),
     ("10 min", 600, Unit.SECONDS), ("30s", 30, Unit.SECONDS), ("1.5 hours", 5400, Unit.SECONDS)],
)  # fmt: skip
def test_durations(text: str, amount: float, unit: Unit) -> None:
    assert Duration.parse(text) == Duration(amount, unit)


@pytest.mark.parametrize("text", ["", "5", "steps", "0 steps", "-1 min", "5 parsecs", "nan s", 5])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse(text)  # type: ignore[arg-type]


@given(st.integers(1, MAX_COUNT), st.sampled_from(["steps", "tokens"]))
def test_a_duration_written_back_reads_the_same(amount: int, unit: str) -> None:
    duration = Duration.parse(f"{amount} {unit}")
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (999_936, "1M"), (10_131_072, "10.1M"), (2e8, "200M"),
     (1_235_814_400, "1.24B"), (405_853_388_800, "406B"), (1.5e13, "15T")],
)  # fmt: skip
def test_counts_as_shown(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (310, "5 min 10 s"), (12_000, "3 h 20 min"),
     (12.2 * 86400, "12 days 4 h")],
)  # fmt: skip
def test_time_spans_as_shown(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [(TimeField, "10 min", "5 steps"), (CountedField, "1B tokens", "10 min")],
)
def test_fields_of_one_kind_take_no_other(field: Any, good: str, bad: str) -> None:
    adapter: TypeAdapter[Duration] = TypeAdapter(field)
    assert adapter.validate_python(good) == Duration.parse(good)
    with pytest.raises(ValidationError, match="expected"):
        adapter.validate_python(bad)
