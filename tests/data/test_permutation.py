"""The seeded permutation: a bijection at every size, well mixed, and the same for ever."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triax.data.read.permutation import Permutation, derive_key, mix64

KEYS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("size", range(1, 130))
def test_every_small_size_is_a_bijection(size: int) -> None:
    permutation = Permutation(size, derive_key(size))
    assert sorted(permutation(index) for index in range(size)) == list(range(size))


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 200_000), key=KEYS)
def test_larger_sizes_are_bijections(size: int, key: int) -> None:
    assert np.array_equal(np.sort(Permutation(size, key).table()), np.arange(size))


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 2**62), key=KEYS)
@example(size=2**62, key=2**64 - 1)
def test_images_are_distinct_at_any_size(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    indices = {*range(min(50, size)), *range(max(0, size - 50), size)}
    images = {permutation(index) for index in indices}
    assert len(images) == len(indices)
    assert all(0 <= image < size for image in images)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 5_000), key=KEYS)
def test_table_holds_the_single_images(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    assert permutation.table().tolist() == [permutation(index) for index in range(size)]


@pytest.mark.parametrize("size", [1_000, 65_536, 100_003])
def test_neighbours_and_epochs_are_uncorrelated(size: int) -> None:
    first, second = (Permutation(size, derive_key("epoch", i)).table() for i in range(2))
    displacement = np.abs(first - np.arange(size)).mean() / size
    noise = 4 / size**0.5
    assert displacement == pytest.approx(1 / 3, abs=noise)
    for left, right in ((first[:-1], first[1:]), (first, second), (first, np.arange(size))):
        assert abs(np.corrcoef(left, right)[0, 1]) < noise
    # Steps between neighbours: a network with too few rounds repeats a few of them.
    assert len(np.unique(np.diff(first) % size)) > 0.6 * size


# The last: p = 1e-4 with 4 and 9 degrees of freedom.
@pytest.mark.parametrize(("size", "num_keys", "limit"), [(5, 12_000, 23.5), (10, 4_000, 34)])
def test_every_image_is_equally_likely_over_keys(size: int, num_keys: int, limit: float) -> None:
    tables = np.stack([Permutation(size, derive_key(seed)).table() for seed in range(num_keys)])
    expected = num_keys / size
    for images in tables.T:
        chi_squared = ((np.bincount(images, minlength=size) - expected) ** 2 / expected).sum()
        assert chi_squared < limit


def test_all_orders_of_a_few_elements_occur() -> None:
    orders = Counter(tuple(Permutation(4, derive_key(seed)).table()) for seed in range(2_000))
    assert len(orders) == 24


def test_mix64_is_splitmix64() -> None:
    # The first outputs of SplitMix64 from state 0, as published with it.
    gamma = 0x9E3779B97F4A7C15
    assert mix64(gamma) == 0xE220A8397B1DCDAF
    assert mix64(2 * gamma % 2**64) == 0x6E789E6AA1B965F4


def test_keys_tell_their_parts_apart() -> None:
    keys = {derive_key(1), derive_key("1"), derive_key("ab", "c"), derive_key("a", "bc")}
    assert len(keys | {derive_key("abc"), derive_key(1, 1), derive_key(11)}) == 7
    assert all(0 <= key < 2**64 for key in keys)


def test_orders_never_change_between_versions() -> None:
    """Runs in progress resume with the order that they began with."""
    assert derive_key(0, "epoch", "train", 3) == 5649817712629342748
    images = [Permutation(10**12, 1)(index) for index in range(3)]
    assert images == [998429075475, 72154330165, 820605776726]
