"""Steps that succeed on every rank or fail on every rank, with the same words.

A rank that raised must not leave the others waiting for it in the next collective, so each step
ends with one verdict: the first failure and how many there are, as text. An exception object that
cannot be unpickled would stop its readers. Values stay where they are, or go to the first rank.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from triax.common.errors import UserError
from triax.parallel.collectives import (
    any_rank,
    broadcast_object,
    gather_objects,
    group_rank,
    group_size,
    reduce_objects,
    scatter_objects,
)

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_MEETINGS = 0.2


class RankError(RuntimeError):
    """A step failed on some rank; every rank raises this, naming the first that failed."""


@dataclass(frozen=True)
class _Failure:
    rank: int
    text: str
    by_user: bool
    num_others: int = 0
    """How many later ranks failed too."""

    def and_later(self, other: _Failure) -> _Failure:
        return replace(self, num_others=self.num_others + 1 + other.num_others)

    def as_error(self, num_ranks: int) -> Exception:
        prefix = f"rank {self.rank}: " if num_ranks > 1 else ""
        others = f" (and {self.num_others} more ranks)" if self.num_others else ""
        text = f"{prefix}{self.text}{others}"
        return UserError(text) if self.by_user else RankError(text)


def describe(error: BaseException) -> str:
    """The error's message; one that isn't ours in one line, after its type."""
    if isinstance(error, UserError | RankError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def agreed(step: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Run a step on every rank; returns this rank's value where no rank has failed.

    Raises:
        UserError: the first failing rank raised one.
        RankError: the step raised anything else.
    """
    attempt = _attempt(step, group)
    _raise_first(attempt if isinstance(attempt, _Failure) else None, group)
    return cast(T, attempt)


def reported(step: Callable[[], T | None], group: dist.ProcessGroup | None) -> dict[int, T]:
    """Run a step on every rank; returns what the ranks that have something to say say, by rank.

    For what is None nearly everywhere: every rank gets all that is said.

    Raises:
        UserError, RankError: as in `agreed`.
    """
    value = agreed(step, group)
    found = {} if value is None else {group_rank(group): value}
    return reduce_objects(found, operator.or_, group)


def decided(
    local: Callable[[], T], decide: Callable[[list[T]], R], group: dist.ProcessGroup | None
) -> R:
    """Send every rank's value to the first rank, whose decision every rank gets.

    Only the first rank holds all values, which matters where they grow with the ranks.

    Raises:
        UserError, RankError: as in `agreed`, for `local` on any rank and `decide` on the first.
    """
    values = _gather_to_first(local, group)
    return on_first(lambda: decide(values or []), group)


def agreed_however_long(step: Callable[[], object], group: dist.ProcessGroup | None) -> None:
    """Run a step of unknown length on every rank.

    The ranks meet again and again, so that no wait runs into the group's timeout.

    Raises:
        UserError, RankError: as in `agreed`.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(step)
        while any_rank([not running.done()], group)[0]:
            time.sleep(_SECONDS_BETWEEN_MEETINGS)
        agreed(running.result, group)


def on_first(step: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Run a step on the first rank alone, and return its value on every rank.

    The others wait in one collective, so the step must end within the group's timeout; for what may
    take longer there is `on_first_however_long`.

    Raises:
        UserError, RankError: as in `agreed`.
    """
    attempt = broadcast_object(_attempt(step, group) if group_rank(group) == 0 else None, group)
    if isinstance(attempt, _Failure):
        raise attempt.as_error(group_size(group))
    return cast(T, attempt)


def on_first_however_long(step: Callable[[], object], group: dist.ProcessGroup | None) -> None:
    """Run a step of unknown length on the first rank, while the others wait for it.

    Raises:
        Exception: what the step raised, in a job of one process.
        UserError, RankError: as in `agreed`, on every rank of others.
    """
    if group is None:
        step()
        return
    agreed_however_long(step if group_rank(group) == 0 else lambda: None, group)


def through_first(
    local: Callable[[], T], combine: Callable[[list[T]], list[R]], group: dist.ProcessGroup | None
) -> R:
    """As `decided`, but each rank gets a reply of its own, and no other's.

    Raises:
        UserError, RankError: as in `decided`.
    """
    values = _gather_to_first(local, group)
    replies = _attempt(lambda: combine(values), group) if values is not None else []
    _raise_first(replies if isinstance(replies, _Failure) else None, group)
    return scatter_objects(cast(list[R], replies) if values is not None else None, group)


class Aside(Generic[T]):
    """One talk between the ranks at a time, that goes on while the main thread computes.

    It has a tag of its own, since the main thread may talk too.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[T] | None = None

    def begin(self, talk: Callable[[], T]) -> None:
        """Start a talk; the last one's result has been taken."""
        self._running = self._pool.submit(talk)

    def result(self) -> T | None:
        """Of the talk that was begun, waiting for its end; None where there is none.

        Raises:
            RuntimeError: a peer is lost.
        """
        running, self._running = self._running, None
        return None if running is None else running.result()


def _gather_to_first(local: Callable[[], T], group: dist.ProcessGroup | None) -> list[T] | None:
    """The values of all ranks, on the first; failures are everywhere."""
    value = agreed(local, group)
    return gather_objects(value, group)


def _attempt(step: Callable[[], T], group: dist.ProcessGroup | None) -> T | _Failure:
    try:
        return step()
    except Exception as error:
        _log.warning("a step failed on this rank", exc_info=True)
        return _Failure(group_rank(group), describe(error), isinstance(error, UserError))


def _raise_first(failure: _Failure | None, group: dist.ProcessGroup | None) -> None:
    """Raise on every rank what failed on the first rank that failed, if any did."""

    def merge(left: _Failure | None, right: _Failure | None) -> _Failure | None:
        return left.and_later(right) if left and right else left or right

    first = reduce_objects(failure, merge, group)
    if first is not None:
        raise first.as_error(group_size(group))
