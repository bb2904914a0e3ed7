"""The prefetching thread: same items, bounded, errors passed on, always ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from triax.data.read.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "triax-prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 2, 50])
def test_items_are_the_same_and_the_thread_ends(depth: int) -> None:
    assert list(prefetched(iter(range(20)), depth)) == list(range(20))
    assert threads() == []


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_comes_after_the_items_before_it(depth: int) -> None:
    def items() -> Iterator[int]:
        yield from (0, 1, 2)
        raise OSError("disk gone")

    received = []
    with pytest.raises(OSError, match="disk gone"):
        for item in prefetched(items(), depth):
            received.append(item)
    assert received == [0, 1, 2]
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_items_are_made_ahead(depth: int) -> None:
    made = threading.Semaphore(0)
    count = 0

    def items() -> Iterator[int]:
        nonlocal count
        while True:
            count += 1
            yield count
            made.release()

    iterator = prefetched(items(), depth)
    assert next(iterator) == 1
    # Each release says that the thread came back for another item: `depth` beyond the first.
    for _ in range(depth):
        assert made.acquire(timeout=30)
    assert not made.acquire(timeout=0.2)
    assert count == depth + 1
    iterator.close()
    assert threads() == []


def test_closing_ends_a_thread_that_waits_and_one_that_works() -> None:
    started, proceed = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        started.set()
        proceed.wait(30)
        yield 1

    iterator = prefetched(items(), 1)
    assert next(iterator) == 0
    assert started.wait(30)
    threading.Timer(0.1, proceed.set).start()
    iterator.close()
    assert threads() == []


def test_no_thread_before_the_first_item_is_asked_for() -> None:
    iterator = prefetched(iter([1]), 2)
    assert threads() == []
    del iterator


def test_dropping_the_iterator_ends_the_thread() -> None:
    iterator = prefetched(iter(range(100)), 2)
    next(iterator)
    assert threads() == ["triax-prefetch"]
    del iterator
    assert threads() == []
