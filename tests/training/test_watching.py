"""Who is blamed for a hang, who is a straggler, which replica is wrong, which limit holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.quantities import Duration, Unit
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.training.stability.faults import flip_weight
from triax.training.stability.heartbeat import Heartbeat, blame
from triax.training.stability.replicas import (
    checksums,
    differing_ranks,
    reader_groups,
    replica_groups,
)
from triax.training.stability.stragglers import find_stragglers
from triax.training.stability.watchdog import Limits
from triax.training.stability_config import StabilityConfig

NOW = 1000.0


def beat(rank: int, **changes: Any) -> Heartbeat:
    usual = Heartbeat(rank, f"node{rank}", 1, 7, "in the step", 30, NOW - 60, NOW - 0.5, 1.0)
    return replace(usual, **changes)


def test_who_no_longer_writes_is_blamed_first() -> None:
    beats = [beat(0), beat(1, num_beats=29), beat(2, time=NOW - 40), beat(3)]
    verdict = blame(beats, NOW)
    assert [culprit.rank for culprit in verdict.culprits] == [2]
    assert "rank 2 on node2: not heard of for 40 s" in str(verdict)


def test_who_is_behind_is_blamed_next() -> None:
    verdict = blame([beat(0), beat(1, num_beats=29, activity="reading data"), beat(2)], NOW)
    assert [culprit.rank for culprit in verdict.culprits] == [1]
    assert "reading data" in str(verdict) and "the others wait" in str(verdict)


def test_nobody_is_blamed_where_all_are_equally_far() -> None:
    assert blame([beat(0), beat(1)], NOW).culprits == ()
    assert [c.rank for c in blame([beat(0)], NOW).culprits] == [0]
    assert blame([beat(0, status="ended", time=0.0), beat(1, status="failed")], NOW).culprits == ()


def test_limits_are_learnt_from_what_was_seen() -> None:
    config = StabilityConfig(
        hang_after=Duration(5, Unit.SECONDS), hang_after_first=Duration(100, Unit.SECONDS),
        hang_factor=10,
    )  # fmt: skip
    limits = Limits(config, {"saving": 200.0})
    assert limits.of("in the step") == 100
    for seconds in (0.1, 0.2, 3.0):
        limits.learn("in the step", seconds)
    assert limits.of("in the step") == 30
    assert limits.of("evaluating") == 100
    assert limits.of("saving") == 200
    for _ in range(40):
        limits.learn("in the step", 0.01)
    assert limits.of("in the step") == 5


def test_a_straggler_is_named_by_its_own_time_or_its_device() -> None:
    assert find_stragglers([0.01] * 4, [1.0] * 4, [0.0] * 4, 1.5) == []
    (slow,) = find_stragglers([0.01, 0.6, 0.01, 0.01], [1.6] * 4, [0.0] * 4, 1.5)
    assert slow.rank == 1
    (throttled,) = find_stragglers([0.0] * 4, [1.0] * 4, [1.0, 1.0, 1.0, 1.7], 1.5)
    assert throttled.rank == 3 and "1.7 times slower" in throttled.what
    assert find_stragglers([0.0, 0.004], [0.006] * 2, [0.0] * 2, 1.5) == [], "not worth a word"


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ([(1, 1), (2, 2), (1, 1), (2, 2), (1, 1), (2, 2)], []),
        ([(1, 1), (2, 2), (9, 1), (2, 2), (1, 1), (2, 2)], [2]),
        ([(1, 1), (2, 2), (1, 1), (2, 2), (1, 1), (2, 9)], [5]),
    ],
)
def test_the_replica_that_differs_from_the_majority_is_wrong(
    found: list[tuple[int, int]], wrong: list[int]
) -> None:
    layout = Layout(pipeline=1, replicate=3, shard=2, context=1, tensor=1)
    assert differing_ranks(replica_groups(layout, ParallelConfig()), found) == wrong


def test_of_two_replicas_either_may_be_wrong() -> None:
    assert differing_ranks([[0, 1]], [(1, 1), (2, 1)]) == [0, 1]


@settings(deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 3)] * 5))
def test_replica_groups_part_the_ranks(sizes: tuple[int, int, int, int, int]) -> None:
    layout = Layout(*sizes)
    groups = replica_groups(layout, ParallelConfig(zero_stage=1))
    num_ranks = torch.Size(sizes).numel()
    assert sorted(rank for group in groups for rank in group) == list(range(num_ranks))
    ranks = torch.arange(num_ranks).view(sizes)
    assert sorted(groups) == sorted(ranks.movedim(1, -1).reshape(-1, layout.replicate).tolist())


@pytest.mark.parametrize(
    ("expert", "groups"),
    [
        (1, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (2, [[0, 2], [1, 3], [4, 6], [5, 7]]),
        (4, [[0], [1], [2], [3], [4], [5], [6], [7]]),
    ],
)
def test_where_nothing_is_sharded_parts_of_sequences_are_replicas_of_the_same_experts(
    expert: int, groups: list[list[int]]
) -> None:
    parallel = ParallelConfig(pipeline=2, context=2, expert=expert, zero_stage=0)
    assert replica_groups(Layout.of(parallel, 8), parallel) == groups


def test_reader_groups_share_their_samples() -> None:
    layout = Layout(pipeline=2, replicate=1, shard=2, context=1, tensor=2)
    assert reader_groups(layout) == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_one_flipped_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    state = {"model.a": torch.arange(33).to(dtype), "optimizer.a.x": torch.ones(5)}
    before = checksums(state)
    assert checksums({name: t.clone() for name, t in state.items()}) == before
    state["model.a"].view(torch.uint8)[7] ^= 4
    after = checksums(state)
    assert after[0] != before[0] and after[1] == before[1]
    flip_weight(state)
    assert checksums(state) != after
