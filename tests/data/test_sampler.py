"""Blends, epochs and phases, as arithmetic on sample numbers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.data.read.sampler import BLOCK_SIZE, Phase, Sampler, block_quotas, source_names

NAMES = ("web", "code", "books")

weights = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(1, 1000).map(lambda n: n / 100)),
    min_size=1,
    max_size=3,
    unique_by=lambda pair: pair[0],
).map(tuple)


@st.composite
def phase_lists(draw: st.DrawFn) -> list[Phase]:
    lengths = draw(st.lists(st.sampled_from([0, 1, 700, 2_345, BLOCK_SIZE, 12_001]), max_size=3))
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return [Phase(start, draw(weights)) for start in starts]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    phases=phase_lists(),
    num_windows=st.fixed_dictionaries({name: st.integers(1, 4_000) for name in NAMES}),
)
def test_every_window_exactly_once_per_epoch_whatever_the_phases(
    seed: int, phases: list[Phase], num_windows: dict[str, int]
) -> None:
    sampler = Sampler(seed, phases, num_windows)
    total = phases[-1].start_sample + 3_000
    seen: dict[str, int] = Counter()
    windows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for sample in range(total):
        at = sampler.locate(sample)
        assert at.epoch == seen[at.source] // num_windows[at.source]
        seen[at.source] += 1
        windows[at.source, at.epoch].append(at.window)
    for (name, epoch), found in windows.items():
        assert len(set(found)) == len(found)
        assert all(0 <= window < num_windows[name] for window in found)
        if epoch < seen[name] // num_windows[name]:
            assert len(found) == num_windows[name]
    assert sampler.consumed(total) == seen


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32), blend=weights, block=st.integers(0, 10**9))
def test_quotas_are_exact_in_every_block(
    seed: int, blend: tuple[tuple[str, float], ...], block: int
) -> None:
    sampler = Sampler(seed, [Phase(0, blend)], dict.fromkeys(NAMES, 10**6))
    samples = range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
    counts = Counter(sampler.locate(sample).source for sample in samples)
    assert tuple(counts[name] for name, _ in blend) == block_quotas(blend)


@settings(deadline=None)
@given(cuts=st.sets(st.integers(1, BLOCK_SIZE - 1), max_size=6))
def test_shares_of_four_decimals_are_exact(cuts: set[int]) -> None:
    ends = [0, *sorted(cuts), BLOCK_SIZE]
    shares = [end - start for start, end in pairwise(ends)]
    blend = [(str(i), share / BLOCK_SIZE) for i, share in enumerate(shares)]
    assert block_quotas(blend) == tuple(shares)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_other_shares_round_to_a_neighbour_and_fill_the_block(values: list[float]) -> None:
    quotas = block_quotas([(str(i), value) for i, value in enumerate(values)])
    assert sum(quotas) == BLOCK_SIZE
    for value, quota in zip(values, quotas, strict=True):
        assert abs(quota - BLOCK_SIZE * value / sum(values)) < 1 + 1e-6


def test_ties_and_thirds() -> None:
    assert block_quotas([("a", 1.0), ("b", 1.0), ("c", 1.0)]) == (3334, 3333, 3333)
    assert block_quotas([("a", 0.1), ("b", 0.2), ("c", 0.7)]) == (1000, 2000, 7000)


def test_a_share_that_rounds_to_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.sources: tiny has weight 1e-05"):
        block_quotas([("large", 1.0), ("tiny", 1e-5)])


def test_the_order_inside_a_block_is_mixed_and_differs_between_blocks() -> None:
    sampler = Sampler(0, [Phase(0, (("web", 0.5), ("code", 0.5)))], {"web": 10**6, "code": 10**6})
    sources = [sampler.locate(sample).source for sample in range(2 * BLOCK_SIZE)]
    first, second = sources[:BLOCK_SIZE], sources[BLOCK_SIZE:]
    assert first != second
    changes = sum(a != b for a, b in pairwise(first))
    assert 4_700 < changes < 5_300
    assert 400 < first[:1000].count("web") < 600


def test_seed_and_phase_each_change_the_order_of_a_block() -> None:
    blend = (("web", 0.5), ("code", 0.5))
    phases = [Phase(0, blend), Phase(BLOCK_SIZE, blend)]
    num_windows = {"web": 10**6, "code": 10**6}

    def order(seed: int, start: int) -> list[str]:
        sampler = Sampler(seed, phases, num_windows)
        return [sampler.locate(start + offset).source for offset in range(1_000)]

    assert len({tuple(order(*at)) for at in ((0, 0), (1, 0), (0, BLOCK_SIZE))}) == 3


def test_far_samples_are_found_as_fast_as_near_ones() -> None:
    num_windows = {"web": 10**12 + 39, "code": 7}
    sampler = Sampler(1, [Phase(0, (("web", 0.9999), ("code", 0.0001)))], num_windows)
    far = 10**15
    locations = {sampler.locate(far + offset) for offset in range(BLOCK_SIZE)}
    web = [at for at in locations if at.source == "web"]
    assert {at.epoch for at in web} == {(far // BLOCK_SIZE * 9999) // num_windows["web"]}
    assert len({at.window for at in web}) == 9999
    assert sampler.consumed(far)["code"] == far // BLOCK_SIZE


def test_a_new_phase_may_begin_far_along() -> None:
    both = (("web", 1.0), ("code", 3.0))
    sampler = Sampler(
        1, [Phase(0, both), Phase(10**14 + 1, (("code", 1.0),))], {"code": 5, "web": 5}
    )
    used = sampler.consumed(10**14 + 1)["code"]
    assert [sampler.locate(10**14 + 1 + i).epoch for i in range(6)] == [
        (used + i) // 5 for i in range(6)
    ]


def test_seed_epoch_and_source_each_change_the_order() -> None:
    def order(seed: int, name: str, epoch: int) -> list[int]:
        sampler = Sampler(seed, [Phase(0, ((name, 1.0),))], {name: 50})
        return [sampler.locate(epoch * 50 + rank).window for rank in range(50)]

    orders = [order(0, "web", 0), order(1, "web", 0), order(0, "code", 0), order(0, "web", 1)]
    assert len({tuple(windows) for windows in orders}) == 4
    assert order(0, "web", 0) == orders[0]


@settings(deadline=None, max_examples=25)
@given(phases=phase_lists())
def test_phases_survive_json_and_older_samples_stay(phases: list[Phase]) -> None:
    restored = [Phase.from_json(json.loads(json.dumps(phase.to_json()))) for phase in phases]
    assert restored == phases
    num_windows = dict.fromkeys(NAMES, 100)
    before, after = Sampler(3, phases[:-1] or phases, num_windows), Sampler(3, phases, num_windows)
    for sample in range(0, phases[-1].start_sample, 97):
        assert before.locate(sample) == after.locate(sample)


def test_a_source_that_is_gone_is_missed_only_where_it_is_read() -> None:
    phases = [Phase(0, (("old", 1.0),)), Phase(10, (("web", 1.0),))]
    sampler = Sampler(0, phases, {"web": 5})
    assert sampler.locate(10).source == "web"
    with pytest.raises(UserError, match=r"named old, which is not among those given \(web\)"):
        sampler.locate(9)
    with pytest.raises(UserError, match="named old"):
        Sampler(0, phases[:1], {"web": 5})


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/data/quick/train"], ["train"]),
        (["/data/web", "/data/code"], ["web", "code"]),
        (["/d/web/train", "/d/code/train", "/d/books"], ["web/train", "code/train", "books"]),
        (["train", "old/train"], ["train", "old/train"]),
        (["/a/x/train", "/b/x/train"], ["a/x/train", "b/x/train"]),
    ],
)
def test_names_are_the_shortest_that_tell_paths_apart(paths: list[str], names: list[str]) -> None:
    assert source_names(paths) == names


component = st.sampled_from(["a", "b", "train"])
paths = st.lists(
    st.lists(component, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6, unique=True
)


@settings(deadline=None)
@given(paths)
def test_names_are_unique_suffixes_and_survive_a_move(paths: list[str]) -> None:
    rooted = [f"/data/{path}" for path in paths]
    names = source_names(rooted)
    assert len(set(names)) == len(names)
    for path, name in zip(rooted, names, strict=True):
        assert PurePosixPath(path).parts[-len(PurePosixPath(name).parts) :] == (
            PurePosixPath(name).parts
        )
    moved = source_names([f"/mnt/disk/{path}" for path in paths])
    kept = [name for name in names if not name.startswith(("/", "data/"))]
    assert [name for name in moved if name in kept] == kept


def test_the_same_path_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names a/train twice"):
        source_names(["a/train", "b", "a//train/"])
