"""An iterator whose failure is known before it strikes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from triax.training.loop.lookahead import Lookahead


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the disk is gone")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_failure_is_known_when_depth_items_are_left(count: int) -> None:
    items, seen = Lookahead(failing(count), depth=2), []
    with pytest.raises(OSError, match="disk is gone"):
        for item in items:
            seen.append(item)
            assert (items.error is not None) == (count - 1 - item < 2)
    assert seen == list(range(count))
    assert isinstance(items.error, OSError)


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_items_that_end_well_are_all_handed_out(depth: int) -> None:
    items = Lookahead(iter(range(4)), depth)
    assert list(items) == [0, 1, 2, 3]
    assert items.error is None and list(items) == []
