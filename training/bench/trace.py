"""From a profiler's trace to where the time of a step went.

A trace is what `torch.profiler` exports: events with a name, a category (`cat`), a thread and a
span in microseconds. On a GPU the device's events count, each by its kernel's name and by the
host's ranges that it was launched in. On a CPU the operations count, each for the time in which it
isn't in another one (`training/bench/nesting.py`). What no event covers is idle.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from triax.training.bench.kinds import Kind, kind_of_kernel, kind_of_range
from triax.training.bench.nesting import Event, Segment, own_times, span

STEP_RANGE = "triax::step"
"""The range around every profiled step."""
_DEVICE_CATEGORIES = {"kernel": None, "gpu_memcpy": Kind.COPIES, "gpu_memset": Kind.COPIES}
_LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver")
_HOST_CATEGORIES = ("cpu_op", "user_annotation")
_STREAM_WAITS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cuStreamSynchronize",
    "cuCtxSynchronize", "hipStreamSynchronize", "hipDeviceSynchronize", "hipMemcpy",
)  # fmt: skip
_BLOCKING_COPY = "Memcpy DtoH (Device -> Pageable)"
"""The host waits in it, whatever was asked for: only page-locked memory is filled meanwhile."""
_OTHER_WAITS = ("cudaEventSynchronize", "hipEventSynchronize", "aten::_local_scalar_dense")
"""The training loop waits for one event a step, that of the step before. `.item()` is a wait for
the stream too if its tensor is on the device."""
_NUM_KERNELS = 40


class Kernel(NamedTuple):
    """All runs of one kernel in a step; on a CPU all stretches of one operation."""

    name: str
    kind: Kind
    seconds: float
    num_runs: float


@dataclass(frozen=True)
class Breakdown:
    """Where the time of the profiled steps went.

    Attributes:
        step_seconds: wall time of a profiled step; the sum of `seconds`.
        seconds: of a step, by kind, idle among them.
        hidden_communication: seconds of a step in which it ran beside something else.
        waits: calls of a step for which the host waits for the device, by name.
        kernels: those that took longest, longest first.
        num_steps: how many were looked at.
    """

    step_seconds: float
    seconds: dict[Kind, float]
    hidden_communication: float
    waits: dict[str, float]
    kernels: list[Kernel]
    num_steps: int

    @property
    def num_stream_waits(self) -> float:
        """Times a step that the host waits for all that the device has to do.

        A blocking copy has such a call of its own, usually but not always.
        """
        calls = sum(count for name, count in self.waits.items() if name in _STREAM_WAITS)
        return max(calls, self.waits.get(_BLOCKING_COPY, 0))


def break_down(trace: Mapping[str, Any], is_gpu: bool) -> Breakdown:
    """Where the time of a trace's steps went, without the first, in which the host isn't ahead yet.

    Args:
        trace: with at least two steps, each in a range called `STEP_RANGE`.
        is_gpu: whether kernels count, or the host's operations. A profiler that may not look at
            the GPU leaves a trace without kernels: all is idle then.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    steps = sorted(
        span(event)
        for event in events
        if event["name"] == STEP_RANGE and event["cat"] == "user_annotation"
    )[1:]
    assert steps, f"the trace has no two ranges called {STEP_RANGE}"
    start, end = host = steps[0][0], steps[-1][1]
    if is_gpu:
        launched = list(_device_segments(events))
        segments = [segment for segment, _ in launched]
        # The device's own time of these steps: it runs behind the host.
        of_steps = [each for each, time in launched if start <= time <= end]
        start = min((each.start for each in of_steps), default=start)
        end = max((each.end for each in of_steps), default=end)
    else:
        segments = own_times(event for event in events if event.get("cat") in _HOST_CATEGORIES)
    segments = [
        each._replace(start=max(each.start, start), end=min(each.end, end))
        for each in segments
        if each.end > start and each.start < end
    ]
    shares, hidden = _shares(segments, start, end)
    return Breakdown(
        step_seconds=(end - start) * 1e-6 / len(steps),
        seconds={kind: shares.get(kind, 0.0) * 1e-6 / len(steps) for kind in Kind},
        hidden_communication=hidden * 1e-6 / len(steps),
        waits=_waits(events, host, len(steps)),
        kernels=_longest(segments, len(steps)),
        num_steps=len(steps),
    )


def _device_segments(events: Sequence[Event]) -> Iterator[tuple[Segment, float]]:
    """What the device did, and when it was launched (-1 where the trace doesn't say)."""
    launches = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCH_CATEGORIES and "correlation" in event.get("args", {})
    }
    on_device = [event for event in events if event.get("cat") in _DEVICE_CATEGORIES]
    times = [launches.get(event.get("args", {}).get("correlation"), -1.0) for event in on_device]
    kinds = _innermost_ranges(events, times)
    for event, time in zip(on_device, times, strict=True):
        name, of_category = event["name"], _DEVICE_CATEGORIES[event["cat"]]
        kind = of_category or kind_of_kernel(name, kinds[time])
        yield Segment(*span(event), kind, name), time


def _innermost_ranges(events: Iterable[Event], times: Iterable[float]) -> dict[float, Kind | None]:
    """What the innermost range around each time is for.

    Threads aren't told apart: while autograd's thread launches, the one that called it waits.
    """
    ranges = sorted(
        (*span(event), kind)
        for event in events
        if event.get("cat") in _HOST_CATEGORIES
        and (kind := kind_of_range(event["name"])) is not None
    )
    starts = [start for start, _, _ in ranges]
    found: dict[float, Kind | None] = {}
    open_ranges: list[tuple[float, float, Kind]] = []
    num_seen = 0
    for time in sorted(set(times)):
        num_begun = bisect.bisect_right(starts, time)
        begun = (*open_ranges, *ranges[num_seen:num_begun])
        open_ranges = [each for each in begun if each[1] >= time]
        num_seen = num_begun
        found[time] = open_ranges[-1][2] if open_ranges else None
    return found


def _shares(
    segments: Iterable[Segment], start: float, end: float
) -> tuple[dict[Kind, float], float]:
    """Microseconds by kind, which add up to the span, and those of hidden communication."""
    changes = [(each.start, 1, each.kind) for each in segments]
    changes += [(each.end, -1, each.kind) for each in segments]
    shares = dict.fromkeys(Kind, 0.0)
    running: Counter[Kind] = Counter()
    hidden, now = 0.0, start
    for time, change, kind in (*sorted(changes), (end, 0, Kind.IDLE)):
        active = next((each for each in Kind if running[each]), Kind.IDLE)
        shares[active] += time - now
        if running[Kind.COMMUNICATION] and active is not Kind.COMMUNICATION:
            hidden += time - now
        running[kind] += change
        now = time
    return shares, hidden


def _waits(events: Iterable[Event], host: tuple[float, float], num_steps: int) -> dict[str, float]:
    names = {*_STREAM_WAITS, _BLOCKING_COPY, *_OTHER_WAITS}
    counts = Counter(
        event["name"]
        for event in events
        if event["name"] in names and host[0] <= event["ts"] <= host[1]
    )
    return {name: count / num_steps for name, count in counts.most_common()}


def _longest(segments: Iterable[Segment], num_steps: int) -> list[Kernel]:
    runs: dict[tuple[str, Kind], list[float]] = {}
    for each in segments:
        runs.setdefault((each.name, each.kind), []).append(each.end - each.start)
    kernels = [
        Kernel(name, kind, sum(times) * 1e-6 / num_steps, len(times) / num_steps)
        for (name, kind), times in runs.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)[:_NUM_KERNELS]
