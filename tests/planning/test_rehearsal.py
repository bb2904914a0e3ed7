"""Mistakes planted into what processes send are found and named; what is right passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.stages import SCHEDULES
from triax.planning.in_flight import micro_batches_in_flight
from triax.planning.rehearsal.comparing import Comparison, compare
from triax.planning.rehearsal.memory import MemoryLog, Part
from triax.planning.rehearsal.messages import Event, Group, Message, Wait
from triax.planning.rehearsal.ranks import axis_of, chosen_ranks, enough_micro_batches

ALL = Group("0", (0, 1, 2, 3))
PAIRS = {0: Group("1", (0, 1)), 1: Group("1", (0, 1)), 2: Group("2", (2, 3)), 3: Group("2", (2, 3))}
LAYOUT = Layout(pipeline=2, replicate=1, shard=2, context=1, tensor=1)


def collective(group: Group, kind: str = "all-reduce", num_bytes: int = 64) -> Message:
    return Message(kind, group, "float32", num_bytes, "backward")


def transfer(kind: str, peer: int, num_bytes: int = 32) -> Message:
    return Message(kind, ALL, "bfloat16", num_bytes, "forward", peer=peer, is_async=True)


def step(rank: int) -> list[Event]:
    """A small step: shards of a pair are gathered and reduced, rank 0 and 1 hand on to 2 and 3."""
    pair = PAIRS[rank]
    hand_on: list[Event] = [
        transfer("send", rank + 2) if rank < 2 else transfer("receive", rank - 2)
    ]
    return [
        collective(pair, "all-gather"),
        *hand_on,
        Wait(1),
        collective(pair, "reduce-scatter"),
        collective(ALL, num_bytes=16),
    ]


def steps() -> dict[int, list[Event]]:
    return {rank: step(rank) for rank in range(4)}


def found(events: dict[int, list[Event]]) -> Comparison:
    return compare(events, lambda group: f"group {group.name}")


def test_a_step_that_fits_has_no_findings() -> None:
    comparison = found(steps())
    assert comparison.findings == ()
    # Two pairs' gathers and reductions, two transfers, and six pairs of four processes.
    assert comparison.num_messages == 4 + 2 + 6


def test_ranks_that_were_not_rehearsed_are_taken_to_come() -> None:
    events = steps()
    assert found({rank: events[rank] for rank in (0, 3)}).findings == ()


def test_a_skipped_collective_is_a_hang_of_the_others() -> None:
    events = steps()
    del events[1][3]  # its reduce-scatter: rank 0 waits for it, and it goes on to the next
    [first, *_] = found(events).findings
    assert first.kind == "hang"
    assert first.ranks == (0, 1)
    assert "rank 0 waits in message 2 of group 1, a reduce-scatter of 64 bytes" in first.text
    assert "for rank 1, which waits in an all-reduce of 16 bytes" in first.text


def test_a_step_that_ends_early_is_told() -> None:
    events = steps()
    del events[3][-1]
    findings = found(events).findings
    assert {each.ranks for each in findings} == {(0, 3), (1, 3), (2, 3)}
    assert all("rank 3, whose step has ended without it" in each.text for each in findings)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"num_bytes": 60}, ("of 64 bytes", "of 60 bytes")),
        ({"dtype": "bfloat16"}, ("of float32", "of bfloat16")),
        ({"kind": "all-reduce"}, ("a reduce-scatter", "an all-reduce")),
    ],
)
def test_another_size_dtype_or_kind_is_a_mismatch(
    other: dict[str, object], words: tuple[str, str]
) -> None:
    events = steps()
    message = events[1][3]
    assert isinstance(message, Message)
    events[1][3] = replace(message, **other)  # type: ignore[arg-type]
    [finding] = found(events).findings
    assert (finding.kind, finding.ranks) == ("mismatch", (0, 1))
    assert f"{words[0]}" in finding.text.split(" on rank 0 and ")[0]
    assert f"{words[1]}" in finding.text.split(" on rank 0 and ")[1]


def test_another_order_is_a_mismatch() -> None:
    events = steps()
    events[2] = [events[2][3], *events[2][1:3], events[2][0], events[2][4]]
    [finding] = found(events).findings
    assert finding.kind == "mismatch"
    assert finding.text.startswith("message 1 of group 2 is a reduce-scatter")


def test_groups_in_another_order_hang() -> None:
    """Each waits for the other in the group that it comes to first."""
    events: dict[int, list[Event]] = {
        0: [collective(PAIRS[0]), collective(ALL)],
        1: [collective(ALL), collective(PAIRS[1])],
    }
    findings = found(events).findings
    assert [each.kind for each in findings] == ["hang", "hang"]


def test_a_send_that_nobody_receives_is_found() -> None:
    events = steps()
    events[2] = [events[2][0], *events[2][3:]]
    [first, *_] = found(events).findings
    assert first.kind == "hang"
    assert "a send of 32 bytes of bfloat16 to rank 2" in first.text


def test_a_send_that_nobody_waits_for_is_found_at_the_end() -> None:
    events = steps()
    events[1].append(transfer("send", 3))
    [finding] = found(events).findings
    assert finding.ranks == (1, 3)
    assert finding.text.endswith("to rank 3 in forward on rank 1, and rank 3 has none")


def test_two_that_send_to_each_other_before_they_receive_hang() -> None:
    """As `dist.send` does where nothing buffers the message; begun together they don't."""
    blocking: dict[int, list[Event]] = {
        rank: [transfer("send", 1 - rank), Wait(0), transfer("receive", 1 - rank), Wait(1)]
        for rank in range(2)
    }
    assert [each.kind for each in found(blocking).findings] == ["hang", "hang"]
    together: dict[int, list[Event]] = {
        rank: [transfer("send", 1 - rank), transfer("receive", 1 - rank), Wait(0), Wait(1)]
        for rank in range(2)
    }
    assert found(together).findings == ()


def test_chosen_ranks_are_a_pipeline_and_the_corners() -> None:
    layout = Layout(pipeline=4, replicate=2, shard=8, context=1, tensor=8)
    ranks = chosen_ranks(layout)
    places = [layout.coordinates(rank) for rank in ranks]
    assert {place["pipeline"] for place in places} == {0, 1, 2, 3}
    assert ranks[0] == 0
    assert ranks[-1] == layout.world_size - 1
    for axis in ("replicate", "shard", "tensor"):
        last = {"pipeline": 0, "replicate": 0, "shard": 0, "context": 0, "tensor": 0}
        assert last | {axis: getattr(layout, axis) - 1} in places
    assert chosen_ranks(Layout(1, 1, 1, 1, 1)) == (0,)


def test_a_long_pipeline_is_chosen_by_its_ends() -> None:
    layout = Layout(pipeline=16, replicate=1, shard=2, context=1, tensor=4)
    places = [layout.coordinates(rank)["pipeline"] for rank in chosen_ranks(layout)]
    assert {*places} == {0, 1, 14, 15}


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "gpipe"])
@pytest.mark.parametrize(("ranks", "count"), [(2, 64), (4, 64), (8, 32)])
def test_few_micro_batches_have_as_many_in_flight_as_all(
    schedule: str, ranks: int, count: int
) -> None:
    parallel = ParallelConfig.model_validate({"pipeline": ranks, "pipeline_schedule": schedule})
    few = enough_micro_batches(parallel, count)
    assert few < count
    for rank in range(ranks):
        assert micro_batches_in_flight(parallel, rank, few) == micro_batches_in_flight(
            parallel, rank, count
        )


def test_without_a_pipeline_two_micro_batches_do_and_gpipe_takes_all() -> None:
    assert enough_micro_batches(ParallelConfig(), 64) == 2
    assert enough_micro_batches(ParallelConfig(), 1) == 1
    assert enough_micro_batches(ParallelConfig(pipeline=4, pipeline_schedule="gpipe"), 64) == 64


def test_groups_are_called_by_their_axes() -> None:
    layout = Layout(pipeline=2, replicate=2, shard=2, context=1, tensor=2)
    assert axis_of(layout, (0, 1)) == "tensor"
    assert axis_of(layout, (0, 2)) == "shard"
    assert axis_of(layout, (0, 2, 4, 6)) == "replicate x shard"
    assert axis_of(layout, (0, 8)) == "pipeline"
    assert axis_of(layout, tuple(range(16))) == "all"
    assert axis_of(layout, (3,)) == "alone"


def test_memory_counts_for_what_it_turns_out_to_be() -> None:
    """By storage, views once; a part that is named late counts from the storage's birth."""
    phases = ["forward"]
    memory = MemoryLog(lambda: phases[-1])
    kept, passing = torch.zeros(100), torch.zeros(50)
    for tensor in (kept, passing, kept[10:]):
        memory.note(tensor)
    del passing, tensor
    phases.append("backward")
    late = torch.zeros(25)
    memory.note(late)
    memory.mark([kept], Part.ACTIVATIONS)
    assert memory.peaks() == {
        "forward": {Part.ACTIVATIONS: 400, Part.TEMPORARY: 200},
        "backward": {Part.ACTIVATIONS: 400, Part.TEMPORARY: 100},
    }
    assert memory.highest() == {Part.ACTIVATIONS: 400, Part.TEMPORARY: 200}
