"""What a rehearsal has found, as text of at most 80 columns and as JSON."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.picture import draw_mesh
from triax.parallel.stages import stages_of_rank
from triax.planning.rehearsal.comparing import Comparison, compare
from triax.planning.rehearsal.memory import Part
from triax.planning.rehearsal.messages import Group, Message
from triax.planning.rehearsal.ranks import axis_of
from triax.planning.rehearsal.recording import Recording

_COLUMNS = 80
_SHOWN: Mapping[str, tuple[Part, ...]] = {
    "weights": (Part.MAIN_PARAMS, Part.WEIGHTS),
    "moments": (Part.MOMENTS,),
    "grads": (Part.GRADIENTS, Part.UNREDUCED),
    "gathered": (Part.GATHERED,),
    "activ.": (Part.ACTIVATIONS,),
    "other": (Part.BUFFERS, Part.MESSAGES, Part.TEMPORARY),
}
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind along one axis, on one process."""

    num_messages: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class Rehearsal:
    """Recordings of some processes of a layout.

    Attributes:
        layout, parallel: of the job.
        recordings: by rank.
        comparison: of their messages.
        capacity: bytes that a device has for tensors, if known.
        processes_per_node: for the picture.
        notes: what differs from the run.
    """

    layout: Layout
    parallel: ParallelConfig
    recordings: Mapping[int, Recording]
    comparison: Comparison
    capacity: int | None
    processes_per_node: int
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        layout: Layout,
        parallel: ParallelConfig,
        recordings: Iterable[Recording],
        *,
        capacity: int | None,
        processes_per_node: int,
        notes: Sequence[str] = (),
    ) -> Rehearsal:
        """Compare recordings with each other."""
        by_rank = {recording.rank: recording for recording in recordings}
        events = {rank: recording.events for rank, recording in by_rank.items()}
        comparison = compare(events, namer(layout))
        return Rehearsal(
            layout, parallel, by_rank, comparison, capacity, processes_per_node, tuple(notes)
        )

    @property
    def too_large(self) -> list[int]:
        """Ranks whose fullest moment doesn't fit their device."""
        if self.capacity is None:
            return []
        return [r for r, each in self.recordings.items() if each.peak[1] > self.capacity]

    @property
    def is_good(self) -> bool:
        """Whether such a job would neither hang nor run out of memory."""
        return not self.comparison.findings and not self.too_large


def namer(layout: Layout) -> Callable[[Group], str]:
    """What groups are called: by their axis, and the first of their ranks."""

    def name(group: Group) -> str:
        return f"the {axis_of(layout, group.ranks)} group of rank {group.ranks[0]}"

    return name


def as_json(rehearsal: Rehearsal) -> dict[str, Any]:
    """Everything, for programs. Sizes in bytes."""
    return {
        "world_size": rehearsal.layout.world_size,
        "is_good": rehearsal.is_good,
        "findings": [
            {"kind": each.kind, "ranks": list(each.ranks), "text": each.text}
            for each in rehearsal.comparison.findings
        ],
        "num_messages_compared": rehearsal.comparison.num_messages,
        "too_large": rehearsal.too_large,
        "capacity": rehearsal.capacity,
        "notes": list(rehearsal.notes),
        "ranks": [
            _rank_as_json(rehearsal, recording) for recording in rehearsal.recordings.values()
        ],
    }


def _rank_as_json(rehearsal: Rehearsal, recording: Recording) -> dict[str, Any]:
    phase, peak = recording.peak
    return {
        "rank": recording.rank,
        "place": rehearsal.layout.coordinates(recording.rank),
        "peak": {"phase": phase, "bytes": peak},
        "peaks": {
            name: {str(part): size for part, size in parts.items()}
            for name, parts in recording.peaks.items()
        },
        "highest": {str(part): size for part, size in recording.highest.items()},
        "messages": [
            _message_as_json(rehearsal.layout, recording.rank, message)
            for message in recording.messages
        ],
    }


def _message_as_json(layout: Layout, rank: int, message: Message) -> dict[str, Any]:
    return {
        "axis": axis_of(layout, message.between(rank)),
        "kind": message.kind,
        "group_size": len(message.group.ranks),
        "dtype": message.dtype,
        "bytes": message.num_bytes,
        "phase": message.phase,
    } | ({} if message.peer is None else {"peer": message.peer})


def as_text(rehearsal: Rehearsal) -> str:
    """All that a person wants to see first."""
    expert = rehearsal.parallel.expert
    lines = draw_mesh(rehearsal.layout, rehearsal.processes_per_node, expert).splitlines()
    lines += ["", *_memory_table(rehearsal), "", *_traffic_table(rehearsal), ""]
    for note in rehearsal.notes:
        lines += textwrap.wrap(f"note: {note}", _COLUMNS, subsequent_indent="      ")
    return "\n".join([*lines, *_verdict(rehearsal)])


def _memory_table(rehearsal: Rehearsal) -> list[str]:
    """One row a process: what it holds in its fullest moment."""
    largest = max(recording.peak[1] for recording in rehearsal.recordings.values())
    unit, name = next((u for u in _UNITS if largest >= u[0]), _UNITS[-1])
    heads = "".join(f"{head:>9}" for head in _SHOWN)
    lines = [f"{name + ' in the fullest moment':<24}", f" rank stages{heads}{'peak':>9}  in"]
    for rank, recording in rehearsal.recordings.items():
        phase, peak = recording.peak
        parts = recording.peaks[phase]
        sizes = [sum(parts.get(part, 0) for part in shown) for shown in _SHOWN.values()]
        figures = "".join(f"{size / unit:>9.2f}" for size in (*sizes, peak))
        mark = " !" if rank in rehearsal.too_large else ""
        stages = _stages(rehearsal, rank)
        lines.append(f"{rank:>5} {stages:<6}{figures}  {_short(phase)}{mark}"[:_COLUMNS])
    return lines


def _stages(rehearsal: Rehearsal, rank: int) -> str:
    place = rehearsal.layout.coordinates(rank)["pipeline"]
    stages = stages_of_rank(place, rehearsal.parallel)
    return ",".join(map(str, stages)) if len(stages) < 3 else f"{stages[0]},.."


def _short(phase: str) -> str:
    return {"forward": "fwd", "backward": "bwd", "between passes": "passes"}.get(phase, phase)


def _traffic_table(rehearsal: Rehearsal) -> list[str]:
    """One row for each axis, kind and dtype: what a process sends in a step."""
    rows = _traffic(rehearsal)
    lines = ["messages of a process in a step (least to most, over the ranks above)"]
    if not rows:
        return [*lines, "  none"]
    lines.append(f"  {'axis':<20} {'kind':<15} {'dtype':<9} {'number':>14} {'bytes':>15}")
    for (axis, kind, dtype), by_rank in rows.items():
        numbers = [by_rank.get(rank, Traffic()).num_messages for rank in rehearsal.recordings]
        sizes = [by_rank.get(rank, Traffic()).num_bytes for rank in rehearsal.recordings]
        lines.append(
            f"  {axis[:20]:<20} {kind:<15} {dtype:<9} {_span(numbers, str):>14} "
            f"{_span(sizes, size_text):>15}"[:_COLUMNS]
        )
    return lines


def _traffic(rehearsal: Rehearsal) -> dict[tuple[str, str, str], dict[int, Traffic]]:
    """By axis, kind and dtype, then by rank; what a process sends to itself is left out."""
    rows: dict[tuple[str, str, str], dict[int, Traffic]] = defaultdict(dict)
    for rank, recording in rehearsal.recordings.items():
        for message in recording.messages:
            axis = axis_of(rehearsal.layout, message.between(rank))
            if message.phase == "build" or axis == "alone":
                continue
            row = rows[axis, message.kind, message.dtype]
            before = row.get(rank, Traffic())
            row[rank] = Traffic(before.num_messages + 1, before.num_bytes + message.num_bytes)
    return dict(sorted(rows.items()))


def _span(values: Sequence[int], show: Callable[[int], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return high if low == high else f"{low}-{high}"


def size_text(num_bytes: int) -> str:
    """A number of bytes in three digits."""
    for unit, name in (*_UNITS[:-1], (1, "B")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g}{name[0]}"
    return "0"


def _verdict(rehearsal: Rehearsal) -> list[str]:
    ranks = f"{len(rehearsal.recordings)} of {rehearsal.layout.world_size:,} processes"
    lines = []
    for finding in rehearsal.comparison.findings:
        text = f"{finding.kind}: {finding.text}"
        lines += textwrap.wrap(text, _COLUMNS, subsequent_indent="  ")
    if rehearsal.too_large:
        assert rehearsal.capacity is not None
        shown = ", ".join(map(str, rehearsal.too_large[:8]))
        lines.append(f"out of memory: rank {shown} needs more than {size_text(rehearsal.capacity)}")
    if not rehearsal.comparison.findings:
        lines.append(
            f"{ranks} rehearsed: {rehearsal.comparison.num_messages:,} pairs of messages fit"
        )
    return lines
