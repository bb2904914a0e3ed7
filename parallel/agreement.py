"""Steps that succeed on every rank or fail on every rank, with the same words.

A rank that raised must not leave the others waiting for it in the next collective, so each step
gathers its outcomes, failures as text: an exception object that cannot be unpickled would stop
its readers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import torch.distributed as dist

from triax.common.errors import UserError
from triax.parallel.collectives import (
    any_rank,
    broadcast_object,
    gather_objects,
    group_rank,
    group_size,
)

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_MEETINGS = 0.2


class RankError(RuntimeError):
    """A step failed on some rank; every rank raises this, naming the first that failed."""


@dataclass(frozen=True)
class _Failure:
    text: str
    by_user: bool

    def as_error(self) -> Exception:
        return UserError(self.text) if self.by_user else RankError(self.text)


def describe(error: BaseException) -> str:
    """The error's message; one that isn't ours in one line, after its type."""
    if isinstance(error, UserError | RankError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def agreed(step: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Run a step on every rank and return all ranks' values, in rank order.

    Raises:
        UserError: the first failing rank raised one.
        RankError: the step raised anything else.
    """
    attempts = gather_objects(_attempt(step), group)
    failure = _failure_among(attempts)
    if failure is not None:
        raise failure.as_error()
    return cast(list[T], attempts)


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
    # Sent once: gathered, a list of files would come from every rank to every rank.
    attempt = broadcast_object(_attempt(step) if group_rank(group) == 0 else None, group)
    failure = _failure_among([attempt] + [None] * (group_size(group) - 1))
    if failure is not None:
        raise failure.as_error()
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
    """Send every rank's value to the first rank, which combines them into one reply per rank.

    Only the first rank holds all values, which matters where they grow with the ranks.

    Raises:
        UserError, RankError: as in `agreed`, for `local` on any rank and `combine` on the first.
    """
    attempts = _gather_to_first(_attempt(local), group)
    replies: list[R | _Failure] | None = None
    if attempts is not None:
        replies = _combine(attempts, combine)
    reply = _scatter_from_first(replies, group)
    if isinstance(reply, _Failure):
        raise reply.as_error()
    return reply


def _combine(
    attempts: list[T | _Failure], combine: Callable[[list[T]], list[R]]
) -> list[R | _Failure]:
    failure = _failure_among(attempts)
    if failure is None:
        combined = _attempt(lambda: combine(cast(list[T], attempts)))
        if not isinstance(combined, _Failure):
            return cast(list[R | _Failure], combined)
        failure = _failure_among([combined, *attempts[1:]])
    return [cast(_Failure, failure)] * len(attempts)


def _attempt(step: Callable[[], T]) -> T | _Failure:
    try:
        return step()
    except Exception as error:
        _log.info("a step failed on this rank", exc_info=True)
        return _Failure(describe(error), isinstance(error, UserError))


def _failure_among(attempts: Sequence[object]) -> _Failure | None:
    """The first rank's failure, with its rank named where there are several."""
    failures = {rank: a for rank, a in enumerate(attempts) if isinstance(a, _Failure)}
    if not failures:
        return None
    rank, first = next(iter(failures.items()))
    prefix = f"rank {rank}: " if len(attempts) > 1 else ""
    others = f" (and {len(failures) - 1} more ranks)" if len(failures) > 1 else ""
    return _Failure(prefix + first.text + others, first.by_user)


def _gather_to_first(value: T, group: dist.ProcessGroup | None) -> list[T] | None:
    if group is None:
        return [value]
    values: list[T | None] | None = [None] * group_size(group) if group_rank(group) == 0 else None
    dist.gather_object(value, values, group=group, group_dst=0)
    return cast(list[T] | None, values)


def _scatter_from_first(values: list[T] | None, group: dist.ProcessGroup | None) -> T:
    if group is None:
        assert values is not None
        return values[0]
    box: list[T | None] = [None]
    dist.scatter_object_list(box, values, group=group, group_src=0)
    return cast(T, box[0])
