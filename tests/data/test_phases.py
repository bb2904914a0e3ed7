"""Phases of a run and caps of its sources, as arithmetic."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from triax.common.errors import UserError
from triax.common.tokens import IGNORE_INDEX
from triax.data.config import DataConfig, PhaseConfig
from triax.data.read.blend import Blend
from triax.data.read.identity import Identity
from triax.data.read.loader import Loader, make_batch
from triax.data.read.plan import PlannedPhase, planned_phases, whole_run
from triax.data.read.sampler import Phase, Sampler
from triax.data.read.source import Source, Window

NAMES = ("web", "code", "books")
SEQ_LEN = 8

shares = st.tuples(*[st.sampled_from([0.0, 0.25, 1.0, 3.0])] * 3).filter(any)
caps = st.tuples(*[st.sampled_from([None, 0.5, 1.0, 2.25])] * 3)


@st.composite
def plans(draw: st.DrawFn) -> tuple[PlannedPhase, ...]:
    lengths = draw(st.lists(st.integers(1, 900), max_size=3))
    starts = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    most = draw(caps)
    return tuple(
        PlannedPhase(start, draw(shares), draw(st.sampled_from([1, 2, 4])), most)
        for start in starts
    )


@settings(deadline=None, max_examples=40)
@given(plans(), st.tuples(*[st.integers(40, 400)] * 3), st.integers(0, 2**32))
def test_a_source_is_read_as_often_as_it_may_and_then_others_take_its_place(
    plan: tuple[PlannedPhase, ...], windows: tuple[int, int, int], seed: int
) -> None:
    phases = [phase.keyed(NAMES) for phase in plan]
    num_windows = dict(zip(NAMES, windows, strict=True))
    limits = {name: int(most * num_windows[name]) for name, most in phases[0].max_epochs}
    try:
        sampler = Sampler(seed, phases, num_windows)
    except UserError as error:
        assert "max_epochs" in str(error)
        return
    read: Counter[str] = Counter()
    seen = set()
    for sample in range(phases[-1].start_sample + 1_500):
        [*_, phase] = [phase for phase in phases if phase.start_sample <= sample]
        left = [name for name, _ in phase.weights if read[name] < limits.get(name, 10**9)]
        if not left:
            assert sampler.end == sample
            with pytest.raises(UserError, match="max_epochs"):
                sampler.locate(sample)
            break
        at = sampler.locate(sample)
        assert at.source in left
        assert (at.source, at.epoch, at.window) not in seen
        seen.add((at.source, at.epoch, at.window))
        read[at.source] += 1
        assert sampler.num_pieces(sample) == phase.num_pieces
        if sample % 97 == 0:
            assert sampler.consumed(sample + 1) == read
    for name, end in sampler.used_up.items():
        assert sampler.consumed(end)[name] == limits[name] == sampler.consumed(10**6)[name]
        assert sampler.consumed(end - 1)[name] < limits[name], "the first such sample"


def data(phases: list[dict[str, Any]], num_sources: int = 2) -> DataConfig:
    sources = [{"path": f"s{number}"} for number in range(num_sources)]
    return DataConfig.model_validate_json(
        json.dumps({"sources": sources, "seq_len": SEQ_LEN, "phases": phases})
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=4), st.integers(1, 16), st.integers(0, 12_000))
def test_a_sample_s_phase_follows_from_its_tokens(
    tokens: list[int], global_batch_size: int, sample: int
) -> None:
    phases = [PhaseConfig(tokens=count) for count in tokens] + [PhaseConfig()]
    config = data([]).model_copy(update={"phases": tuple(phases)})
    plan = planned_phases(config, global_batch_size)
    assert [phase.start_sample % global_batch_size for phase in plan] == [0] * len(plan)
    assert plan[0].start_sample == 0
    # What a step begins with is what the whole step is read in.
    first = sample - sample % global_batch_size
    ends = np.cumsum(tokens) // (global_batch_size * SEQ_LEN) * global_batch_size
    assert sum(phase.start_sample <= first for phase in plan) == len(
        {0, *ends.tolist()} & set(range(first + 1))
    )


def test_phases_that_cannot_be_are_refused() -> None:
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{}, {}], "only the last phase"),
        ([{"seq_len": 3}], "must be a multiple"),
        ([{"weights": [1.0]}], "one for each of the 2"),
        ([{"weights": [0.0, 0.0]}], "nothing is read"),
        ([{"weights": [0.0, 1.0]}], "the weight 0 everywhere"),
        ([{"tokens": "0"}], "greater than 0"),
    ]
    for phases, message in cases:
        with pytest.raises(ValidationError, match=message):
            data(phases)
    assert data([{"tokens": "1K", "seq_len": 4}, {"weights": [0.0, 2.0]}]).phases[0].tokens == 1000


def window(length: int, seed: int) -> Window:
    chance = np.random.default_rng(seed)
    documents = np.cumsum(chance.random(length) < 0.2).astype(np.int32)
    return Window(chance.integers(0, 50, length), documents - documents[0])


@pytest.mark.parametrize("num_pieces", [1, 2, 4, 8])
def test_the_parts_of_a_window_have_its_targets_once_each(num_pieces: int) -> None:
    whole = window(SEQ_LEN + 1, 3)
    parts = whole.cut(num_pieces)
    cut = make_batch(parts, mask_documents=True, pin_memory=False)
    uncut = make_batch([whole], mask_documents=True, pin_memory=False)
    assert cut.tokens_BT.shape == (num_pieces, SEQ_LEN // num_pieces)
    assert torch.equal(cut.tokens_BT.flatten(), uncut.tokens_BT[0])
    assert torch.equal(cut.targets_BT.flatten(), uncut.targets_BT[0])
    assert (cut.targets_BT == IGNORE_INDEX).any() or whole.document_ids[-1] == 0
    assert all(part.document_ids[0] == 0 for part in parts)


class Numbered(Source):
    """A source whose windows say their number."""

    def __init__(self, first: int) -> None:
        self.first = first

    @property
    def is_remote(self) -> bool:
        return False

    def window(self, index: int) -> Window:
        tokens = np.full(SEQ_LEN + 1, self.first + index, np.int64)
        return Window(tokens, np.zeros(SEQ_LEN + 1, np.int32))


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_any_number_of_ranks_reads_the_same_over_a_border(dp_size: int) -> None:
    phases = [Phase(0, (("web", 1.0),), 4), Phase(16, (("web", 1.0), ("code", 1.0)), 1)]
    sampler = Sampler(0, phases, {"web": 100, "code": 100})
    loaders = [
        Loader(
            {"web": Numbered(0), "code": Numbered(1000)}, sampler, global_batch_size=8,
            micro_batch_size=2, dp_rank=rank, dp_size=dp_size, mask_documents=True,
        )
        for rank in range(dp_size)
    ]  # fmt: skip
    found = [
        torch.cat([b.tokens_BT for loader in loaders for b in loader.batch_at(cursor)])
        for cursor in (0, 8, 16, 24)
    ]
    assert [len(tokens) for tokens in found] == [32, 32, 8, 8]
    expected = [sampler.locate(sample) for sample in range(32)]
    numbers = [at.window + (1000 if at.source == "code" else 0) for at in expected]
    rows = [tokens[:: len(tokens) // 8, 0].tolist() for tokens in found]
    assert [number for row in rows for number in row] == numbers
    assert [loaders[0].changes_at(cursor) for cursor in (0, 8, 16, 24)] == [0, 0, 1, 0]


GIVEN = [Identity(name, 300, (name,)) for name in NAMES]


def recorded(blend: Blend) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(blend.to_json()))
    return value


@settings(deadline=None, max_examples=40)
@given(plans(), st.integers(0, 3000), st.permutations(range(3)))
def test_a_plan_that_stays_goes_on_as_it_was(
    plan: tuple[PlannedPhase, ...], cursor: int, order: list[int]
) -> None:
    """At any sample, with its sources listed in any order."""
    begun = Blend.begin(GIVEN, plan)

    def listed(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[number] for number in order)

    other = [
        PlannedPhase(p.start_sample, listed(p.weights), p.num_pieces, listed(p.max_epochs))
        for p in plan
    ]
    again = Blend.resume(recorded(begun), cursor, [GIVEN[number] for number in order], other)
    assert not again.is_new and again.phases == begun.phases
    assert not again.differs_from(recorded(begun), cursor)


def test_what_is_to_come_may_change_and_what_has_been_read_stays() -> None:
    plan = (PlannedPhase(0, (1.0, 1.0, 0.0)), PlannedPhase(500, (0.0, 1.0, 1.0)))
    begun = Blend.begin(GIVEN, plan)
    later = (plan[0], PlannedPhase(700, (0.0, 0.0, 1.0), 2))
    again = Blend.resume(recorded(begun), 400, GIVEN, later)
    assert not again.is_new
    assert [phase.start_sample for phase in again.phases] == [0, 700]
    # Behind the border the new plan still reads what came first: there another phase begins.
    behind = Blend.resume(recorded(begun), 600, GIVEN, later)
    assert behind.is_new and behind.differs_from(recorded(begun), 600)
    assert [phase.start_sample for phase in behind.phases] == [0, 500, 600, 700]
    num_windows = dict.fromkeys(begun.keys, 300)
    orders = [
        [Sampler(0, blend.phases, num_windows).locate(sample) for sample in range(600)]
        for blend in (begun, behind)
    ]
    assert orders[0] == orders[1]
    single = Blend.resume(recorded(begun), 100, GIVEN, whole_run(1.0, 1.0, 0.0))
    assert not single.is_new and len(single.phases) == 1
