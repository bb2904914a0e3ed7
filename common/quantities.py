"""Counts and durations as people write them: `"20B"`, `"500 steps"`, `"1B tokens"`, `"10 min"`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

_MULTIPLIERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
MAX_COUNT = 10**18
"""More tokens than anyone has; keeps all arithmetic within 64 bits."""
MAX_SECONDS = 10 * 365 * 86400
"""Longer than anything here lasts; threads, sockets and `timedelta` can't wait for much more."""

_DURATION = re.compile(r"(.*\d\s*[KMBT]?)\s+([a-z]+)|([\d.]+)\s*([a-z]+)", re.IGNORECASE)
_ZERO = re.compile(r"\s*0\s*(?:steps?|tokens?)?\s*", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*\Z", re.ASCII)
_COUNT = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?)\s*([KMBT]?)", re.IGNORECASE)


class Unit(StrEnum):
    """What a duration is measured in."""

    STEPS = "steps"
    TOKENS = "tokens"
    SECONDS = "seconds"


_SECONDS_PER = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}


def shorten(value: object) -> str:
    """The value as written, cut to fit a line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


def parse_count(text: str | int) -> int:
    """Read a count such as `"20B"`, `"1.5M"`, `"10_000"` or a plain integer.

    K, M, B and T are powers of a thousand, in either case.

    Raises:
        ValueError: the text is no count, is negative, or is no whole number.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise ValueError(f'expected a count such as 1000, "1M" or "20B", got {shorten(text)}')
    if isinstance(text, int):
        if not 0 <= text <= MAX_COUNT:
            raise ValueError(f"expected a count from 0 to {MAX_COUNT:.0e}")
        return text
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'expected a count such as 1000, "1M" or "20B", got {shorten(text)}')
    whole, _, fraction = match[1].replace("_", "").partition(".")
    scaled = int(whole + fraction) * _MULTIPLIERS[match[2].upper()]
    shift: int = 10 ** len(fraction)
    count, remainder = divmod(scaled, shift)
    if remainder:
        raise ValueError(f"{text!r} is not a whole number")
    if count > MAX_COUNT:
        raise ValueError(
            f"expected a count of at most {MAX_COUNT:.0e}, got one of {len(text)} digits"
        )
    return count


def format_count(count: float) -> str:
    """Show a count by its three leading digits: 10.1M, 200M, 1.24B."""
    rounded = float(f"{count:.3g}")
    for suffix in ("T", "B", "M", "K"):
        if abs(rounded) >= _MULTIPLIERS[suffix]:
            return f"{rounded / _MULTIPLIERS[suffix]:.4g}{suffix}"
    return f"{rounded:g}"


def format_seconds(seconds: float) -> str:
    """Show a time span as people say it: 42 s, 5 min 10 s, 3 h 20 min, 12 days 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400:,} days {whole % 86400 // 3600} h"


@dataclass(frozen=True)
class Duration:
    """A length of a run in steps, tokens or seconds."""

    amount: float
    unit: Unit

    @staticmethod
    def parse(text: str | Duration) -> Duration:
        """Read a duration such as `"500 steps"`, `"20B tokens"` or `"10 min"`.

        Raises:
            ValueError: it is none, or its amount is not above zero.
        """
        if isinstance(text, Duration):
            return text
        expected = 'expected a duration such as "500 steps", "1B tokens" or "10 min"'
        match = _DURATION.fullmatch(str(text).strip())
        if not isinstance(text, str) or match is None:
            raise ValueError(f"{expected}, got {shorten(text)}")
        number, word = (match[1] or match[3]).strip(), (match[2] or match[4]).lower()
        singular = word.removesuffix("s") if len(word) > 1 else word
        try:
            if singular in ("step", "token"):
                duration = Duration(parse_count(number), Unit(singular + "s"))
            elif singular in _SECONDS_PER:
                duration = Duration(float(number) * _SECONDS_PER[singular], Unit.SECONDS)
            else:
                raise ValueError
        except ValueError:
            raise ValueError(f"{expected}, got {shorten(text)}") from None
        if duration.amount <= 0:
            raise ValueError(f"expected a duration above zero, got {shorten(text)}")
        if duration.unit is Unit.SECONDS and duration.amount > MAX_SECONDS:
            raise ValueError(f"expected a time of at most 10 years, got {shorten(text)}")
        return duration

    def __str__(self) -> str:
        if self.unit is Unit.SECONDS:
            return f"{self.amount:.12g} s"
        return f"{int(self.amount)} {self.unit}"


DurationField = Annotated[
    Duration, BeforeValidator(Duration.parse), PlainSerializer(str, return_type=str)
]
"""A config field that takes a duration such as `"500 steps"`, and is written back as one."""


def _parse_or_auto(value: object) -> object:
    if value == "auto":
        return value
    try:
        return Duration.parse(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(str(error).replace(", got", ', or "auto", got', 1)) from None


DurationOrAutoField = Annotated[
    Duration | Literal["auto"],
    BeforeValidator(_parse_or_auto),
    PlainSerializer(str, return_type=str),
]
"""The same, where triax may choose it."""


def _timed(duration: Duration) -> Duration:
    if duration.unit is not Unit.SECONDS:
        raise ValueError(f'expected a time such as "30 s" or "10 min", got "{duration}"')
    return duration


def _patient(duration: Duration) -> Duration:
    if duration.amount < 1:
        raise ValueError(f'expected at least 1 s, which a busy machine may need, got "{duration}"')
    return duration


def _counted(duration: Duration) -> Duration:
    if duration.unit is Unit.SECONDS:
        raise ValueError(f'expected steps or tokens, such as "500 steps", got "{duration}"')
    return duration


def _parse_or_zero(value: object) -> Duration:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if (is_number or isinstance(value, str)) and _ZERO.fullmatch(str(value)):
        return Duration(0, Unit.STEPS)
    return Duration.parse(value)  # type: ignore[arg-type]


TimeField = Annotated[DurationField, AfterValidator(_timed)]
"""A duration in time only."""

PatienceField = Annotated[TimeField, AfterValidator(_patient)]
"""How long something may take before it counts as failed."""

CountedField = Annotated[DurationField, AfterValidator(_counted)]
"""A duration in steps or tokens only."""

CountField = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
"""A count above 0, as `parse_count` reads it."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?))?B?", re.ASCII)


def parse_size(size: str | int) -> int:
    """Read a number of bytes such as `"20GB"` or `"512MiB"`, or a plain integer.

    Raises:
        ValueError: it is none.
    """
    if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_COUNT:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None:
        raise ValueError(f'expected bytes such as "20GB" or "512MiB", got {shorten(size)}')
    base, power = 1024 if match[3] else 1000, " kMGT".index(match[2] or " ")
    num_bytes = int(float(match[1]) * base**power)
    if not 0 < num_bytes <= MAX_COUNT:
        raise ValueError(f"expected 1 to {MAX_COUNT:.0e} bytes, got {shorten(size)}")
    return num_bytes


SizeField = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
"""A number of bytes."""

CountedOrZeroField = Annotated[
    Duration,
    BeforeValidator(_parse_or_zero),
    AfterValidator(_counted),
    PlainSerializer(str, return_type=str),
]
"""The same, where none at all can be meant: `0`, `"0 steps"`."""


def _parse_share(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _PERCENT.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'expected a share such as "2%" or 0.02, got {shorten(value)}')
    return float(match[1]) / 100


def _within_one(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f'expected a share above 0 and up to "100%", got {share:g}')
    return share


ShareField = Annotated[float, BeforeValidator(_parse_share), AfterValidator(_within_one)]
"""A part of a whole: `"2%"`, or 0.02."""
