"""An iterator whose failure is known some items before it strikes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Lookahead(Iterator[T]):
    """The same items, each handed out once the `depth` items behind it have been tried.

    Args:
        items: what it raises is raised here too, after the items before it.
        depth: how many items are held.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._depth = depth
        self._ahead: deque[T] = deque()
        self._has_ended = False
        self.error: Exception | None = None
        """What ends the items; known at the latest when `depth` of them are left."""
        self._fill()

    def __next__(self) -> T:
        self._fill()
        if self._ahead:
            return self._ahead.popleft()
        if self.error is not None:
            raise self.error
        raise StopIteration

    def _fill(self) -> None:
        while not self._has_ended and len(self._ahead) <= self._depth:
            try:
                self._ahead.append(next(self._items))
            except StopIteration:
                self._has_ended = True
            except Exception as error:
                self._has_ended, self.error = True, error
