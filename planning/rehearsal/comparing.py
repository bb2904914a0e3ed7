"""Whether what processes send fits together: their messages run against each other, as a job would.

Every process goes through its own messages in order. A collective is over when all members of its
group have come to it; a send when the receiver has begun to receive, and the other way round. What
nobody waits for yet holds nobody up. Members that weren't rehearsed are taken to come.

Where processes stop, the job would hang; where they meet with different messages it would hang or
compute nonsense.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from triax.planning.rehearsal.messages import SEND, Event, Group, Message, Wait

_UNEQUAL = frozenset(("all-to-all", "gather", "scatter"))
"""Collectives to which each process may bring another number of bytes."""


@dataclass(frozen=True)
class Finding:
    """A mistake.

    Attributes:
        kind: "mismatch" or "hang".
        ranks: those that it is about.
        text: what it is, for a person.
    """

    kind: str
    ranks: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    findings: tuple[Finding, ...]
    num_messages: int
    """That met their like on another process."""


def compare(
    events: Mapping[int, Sequence[Event]],
    name_of: Callable[[Group], str] = lambda group: group.name,
) -> Comparison:
    """Run the events of several processes against each other.

    Args:
        events: by rank.
        name_of: what a group is called in findings.
    """
    return _Meeting(events, name_of).run()


@dataclass(frozen=True)
class _Place:
    """The n-th message of a process in a group, or to and from a peer there."""

    rank: int
    channel: tuple[object, ...]
    number: int


class _Process:
    """A process on its way through its events."""

    def __init__(self, rank: int, events: Sequence[Event]) -> None:
        self.rank = rank
        self.events = events
        self.position = 0
        self.num_seen = 0
        """Events that it has come to: one more than its position while it waits in a message."""
        self.places: list[_Place] = []
        """Of its messages up to now."""

    @property
    def is_done(self) -> bool:
        return self.position == len(self.events)


class _Meeting:
    def __init__(
        self, events: Mapping[int, Sequence[Event]], name_of: Callable[[Group], str]
    ) -> None:
        self._processes = {rank: _Process(rank, own) for rank, own in sorted(events.items())}
        self._name_of = name_of
        self._sent: dict[_Place, Message] = {}
        self._counts: dict[tuple[int, tuple[object, ...]], int] = defaultdict(int)
        self._members: dict[Group, list[int]] = {}
        """Of groups: those that were rehearsed."""
        self._findings: list[Finding] = []
        self._num_matched = 0

    def run(self) -> Comparison:
        while any(self._advance(process) for process in self._processes.values()):
            if self._findings:
                break  # what comes after it follows from it
        else:
            self._find_hang()
        return Comparison(tuple(self._findings), self._num_matched)

    def _advance(self, process: _Process) -> bool:
        """Go as far as possible; returns whether that was any step."""
        began = process.position
        while not process.is_done and not self._findings:
            event = process.events[process.position]
            if isinstance(event, Message):
                if process.num_seen == process.position:
                    self._send(process, event)
                    process.num_seen += 1
                if not event.is_async and self._missing(process.places[-1], event):
                    break
            else:
                place = process.places[event.number]
                if self._missing(place, self._sent[place]):
                    break
            process.position += 1
            process.num_seen = process.position
        return process.position > began

    def _send(self, process: _Process, message: Message) -> None:
        channel = _channel(process.rank, message)
        key = (process.rank, channel)
        place = _Place(process.rank, channel, self._counts[key])
        self._counts[key] += 1
        process.places.append(place)
        self._sent[place] = message
        for other in self._others(message, process.rank):
            theirs = self._sent.get(_Place(other, channel, place.number))
            if theirs is None:
                continue
            self._num_matched += 1
            if not _fits(message, theirs):
                self._findings.append(self._mismatch(place, other, message, theirs))
                return

    def _others(self, message: Message, rank: int) -> list[int]:
        """The rehearsed processes that must do their part of a message."""
        if message.is_transfer:
            return [message.peer] if message.peer in self._processes else []
        if message.group not in self._members:
            here = [other for other in message.group.ranks if other in self._processes]
            self._members[message.group] = here
        return [other for other in self._members[message.group] if other != rank]

    def _missing(self, place: _Place, message: Message) -> list[int]:
        """Who hasn't come to a message yet."""
        return [
            other
            for other in self._others(message, place.rank)
            if _Place(other, place.channel, place.number) not in self._sent
        ]

    def _mismatch(self, place: _Place, other: int, ours: Message, theirs: Message) -> Finding:
        ranks = tuple(sorted((place.rank, other)))
        first, second = (ours, theirs) if ranks[0] == place.rank else (theirs, ours)
        between = f"message {place.number + 1} of {self._name_of(ours.group)}"
        return Finding(
            "mismatch",
            ranks,
            f"{between} is {describe(first)} on rank {ranks[0]} and {describe(second)} on rank "
            f"{ranks[1]}",
        )

    def _find_hang(self) -> None:
        """Say who waits for whom, if somebody does."""
        waiting = [process for process in self._processes.values() if not process.is_done]
        for process in waiting:
            event = process.events[process.position]
            place = process.places[event.number if isinstance(event, Wait) else -1]
            message = self._sent[place]
            missing = self._missing(place, message)
            self._findings.append(
                Finding(
                    "hang",
                    (process.rank, *missing),
                    f"rank {process.rank} waits in message {place.number + 1} of "
                    f"{self._name_of(message.group)}, {describe(message)}, for "
                    + ", ".join(map(self._why, missing)),
                )
            )
        if not waiting:
            self._find_unmatched()

    def _why(self, rank: int) -> str:
        process = self._processes[rank]
        if process.is_done:
            return f"rank {rank}, whose step has ended without it"
        event = process.events[process.position]
        place = process.places[event.number if isinstance(event, Wait) else -1]
        message = self._sent[place]
        return f"rank {rank}, which waits in {describe(message)} of {self._name_of(message.group)}"

    def _find_unmatched(self) -> None:
        """Messages that nobody waited for, and that nobody else has done their part of."""
        for place, message in self._sent.items():
            for other in self._missing(place, message):
                self._findings.append(
                    Finding(
                        "mismatch",
                        (place.rank, other),
                        f"message {place.number + 1} of {self._name_of(message.group)} is "
                        f"{describe(message)} on rank {place.rank}, and rank {other} has none",
                    )
                )


def describe(message: Message) -> str:
    """A message in a few words."""
    where = f" in {message.phase}" if message.phase else ""
    peer = ""
    if message.peer is not None:
        peer = f" {'to' if message.kind == SEND else 'from'} rank {message.peer}"
    what = f"a {message.kind}" if message.kind[0] not in "aeiou" else f"an {message.kind}"
    return f"{what} of {message.num_bytes:,} bytes of {message.dtype or 'nothing'}{peer}{where}"


def _channel(rank: int, message: Message) -> tuple[object, ...]:
    """What messages are counted by: the group, or within it the way from one to another."""
    group = (message.group.name, message.group.ranks)
    if not message.is_transfer:
        return group
    ends = (rank, message.peer) if message.kind == SEND else (message.peer, rank)
    return (*group, *ends)


def _fits(ours: Message, theirs: Message) -> bool:
    if ours.is_transfer != theirs.is_transfer or ours.dtype != theirs.dtype:
        return False
    if not ours.is_transfer and ours.kind != theirs.kind:
        return False
    return ours.num_bytes == theirs.num_bytes or ours.kind in _UNEQUAL
