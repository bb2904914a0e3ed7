"""The tree that agreements go along: who talks with whom, and what comes of ranks that fail."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from checkpoint_ranks import run_ranks

from triax.common.errors import UserError
from triax.parallel.agreement import agreed, decided, on_first, reported, through_first
from triax.parallel.collectives import any_rank, children_of, parent_of


@pytest.mark.parametrize("size", [1, 2, 8, 9, 65, 100, 512, 1000])
def test_every_rank_is_reached_once_and_in_order(size: int) -> None:
    def below(rank: int) -> list[int]:
        children = children_of(rank, size)
        assert all(parent_of(child) == rank for child in children)
        return [rank, *itertools.chain.from_iterable(map(below, children))]

    assert below(0) == list(range(size))


def test_no_rank_but_leaders_has_more_peers_at_scale() -> None:
    peers = [len(children_of(rank, 16_384)) for rank in range(16_384)]
    assert sum(number > 0 for number in peers) == 16_384 // 8
    assert peers[0] == 31 == max(peers)


def _fail_at(ranks: tuple[int, ...]) -> int:
    if dist.get_rank() in ranks:
        raise OSError(f"no disk {dist.get_rank()}") if dist.get_rank() > 5 else UserError("bad")
    return dist.get_rank()


def _words(call: Any) -> str:
    try:
        return str(call())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _talk(group: dist.ProcessGroup) -> list[Any]:
    rank = dist.get_rank()
    large = "x" * 100_000
    return [
        agreed(lambda: rank, group) == rank,
        reported(lambda: "here" if rank in (3, 9) else None, group),
        any_rank([rank == 9, False], group),
        decided(lambda: rank, lambda found: sum(found), group),
        through_first(lambda: (rank, large), lambda found: [r for r, _ in found], group) == rank,
        on_first(lambda: rank + 7, group),
        _words(partial(agreed, partial(_fail_at, (9, 7, 8)), group)),
        _words(partial(agreed, partial(_fail_at, (4, 9)), group)),
        _words(partial(on_first, partial(_fail_at, (0,)), group)),
        _words(partial(decided, lambda: rank, lambda _: _fail_at((0,)), group)),
        _words(partial(through_first, lambda: rank, lambda _: [_fail_at((0,))], group)),
    ]


def test_all_ranks_hear_the_same_and_the_first_failure_is_named(tmp_path: Path) -> None:
    expected = [
        True,
        {3: "here", 9: "here"},
        [True, False],
        45,
        True,
        7,
        "RankError: rank 7: OSError: no disk 7 (and 2 more ranks)",
        "UserError: rank 4: bad (and 1 more ranks)",
        *["UserError: rank 0: bad"] * 3,
    ]
    assert run_ranks(_talk, 10, tmp_path) == [expected] * 10
