"""On a CPU: from nested operations to the time in which each one itself was at work."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from triax.training.bench.kinds import (
    Kind,
    is_multi_tensor,
    kind_by_name,
    kind_of_kernel,
    kind_of_range,
)

Event = Mapping[str, Any]
"""One of a trace's complete events."""

_COMPILED = re.compile(r"Torch-Compiled Region|CompiledFunction|CompiledFxGraph|graph_\d+_cpp")
"""What isn't an operation of its own in there is a fused loop."""


class Segment(NamedTuple):
    """A stretch of time in which a device did one thing; microseconds."""

    start: float
    end: float
    kind: Kind
    name: str


class _Open(NamedTuple):
    """An operation or range that others may be in."""

    end: float
    name: str
    kind: Kind | None
    """What it does itself; None for what only calls others."""
    inherited: Kind | None
    """What all does that is in it."""
    within: Kind | None
    """What the innermost range around it, or itself, is for."""


def span(event: Event) -> tuple[float, float]:
    """Start and end in microseconds."""
    start = float(event["ts"])
    return start, start + float(event.get("dur", 0))


def own_times(events: Iterable[Event]) -> list[Segment]:
    """What the operations of all threads did, for the time in which each isn't in another one.

    Operations that call others count for nothing but those: what they add is the host's overhead.
    """
    threads: defaultdict[Any, list[Event]] = defaultdict(list)
    for event in events:
        threads[event.get("tid")].append(event)
    return [segment for each in threads.values() for segment in _of_thread(each)]


def _of_thread(events: list[Event]) -> Iterator[Segment]:
    events.sort(key=lambda event: (span(event)[0], -span(event)[1]))
    stack: list[_Open] = []
    now = 0.0
    for event, has_others in zip(events, _have_others(events), strict=True):
        start, end = span(event)
        while stack and stack[-1].end <= start:
            yield from _segment(now, stack[-1].end, stack[-1])
            now = max(now, stack.pop().end)
        if stack:
            yield from _segment(now, start, stack[-1])
        now = start
        stack.append(_opened(event, end, has_others, stack[-1] if stack else None))
    while stack:
        yield from _segment(now, stack[-1].end, stack[-1])
        now = max(now, stack.pop().end)


def _have_others(events: Sequence[Event]) -> list[bool]:
    """Whether each event has others in it, for events by their start."""
    return [*(span(after)[0] < span(before)[1] for before, after in pairwise(events)), False]


def _opened(event: Event, end: float, has_others: bool, outer: _Open | None) -> _Open:
    name = event["name"]
    within = kind_of_range(name) or (outer.within if outer else None)
    inherited = (outer.inherited if outer else None) or kind_by_name(name)
    is_operation = event["cat"] == "cpu_op"
    if inherited is None and is_operation and is_multi_tensor(name):
        inherited = kind_of_kernel(name, within)
    kind = inherited
    if kind is None and ((is_operation and not has_others) or _COMPILED.search(name)):
        kind = kind_of_kernel(name, within)
    return _Open(end, name, kind, inherited, within)


def _segment(start: float, end: float, operation: _Open) -> Iterator[Segment]:
    if operation.kind is not None and end > start:
        yield Segment(start, end, operation.kind, operation.name)
