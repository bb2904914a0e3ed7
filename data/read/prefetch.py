"""Run an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")

_JOIN_SECONDS = 10.0
"""A thread stuck in a read (a dead network disk) is left behind: it is a daemon."""


class _End:
    """The last thing in the queue: how the items ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, of which up to `depth` are made ahead by a daemon thread (0: no thread).

    The thread starts with the first `next` and ends when the items do or when the iterator is
    closed. What `items` raises is raised here, after the items before it.
    """
    if depth == 0:
        yield from items
        return
    queue: SimpleQueue[T | _End] = SimpleQueue()
    free_places = Semaphore(depth)
    closing = Event()

    def produce() -> None:
        error: BaseException | None = None
        try:
            # The place is taken before the item is made, so at most `depth` are in memory here.
            while free_places.acquire() and not closing.is_set():
                queue.put(next(items))
        except StopIteration:
            pass
        except BaseException as raised:
            error = raised
        queue.put(_End(error))

    thread = Thread(target=produce, name="triax-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := queue.get(), _End):
            free_places.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closing.set()
        free_places.release()
        thread.join(_JOIN_SECONDS)
