"""Which process this is, from the variables a launcher sets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.launcher.environment import discover

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_nobody_s_child_is_the_only_process() -> None:
    found = discover({"MASTER_ADDR": "somewhere", "PATH": "/bin"})
    assert (found.rank, found.world_size, found.launcher) == (0, 1, "single")


def test_torchrun_s_variables_are_read() -> None:
    found = discover(TORCHRUN)
    assert (found.rank, found.local_rank, found.node_rank) == (5, 1, 1)
    assert (found.world_size, found.local_world_size, found.launcher) == (8, 4, "torchrun")
    without_group = {name: value for name, value in TORCHRUN.items() if name != "GROUP_RANK"}
    assert discover(without_group).node_rank == 1


@pytest.mark.parametrize("missing", [name for name in TORCHRUN if name != "GROUP_RANK"])
def test_a_half_set_environment_names_what_is_missing(missing: str) -> None:
    variables = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"but not {missing}: start the processes with torchrun"):
        discover(variables)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RANK", "8", "RANK is 8, expected less than WORLD_SIZE, which is 8"),
        ("RANK", "-1", "RANK is '-1', expected a whole number of at least 0"),
        ("RANK", "", "RANK is ''"),
        ("LOCAL_RANK", "4", "LOCAL_RANK is 4, expected less than LOCAL_WORLD_SIZE"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0', expected a whole number of at least 1"),
        ("WORLD_SIZE", "eight", "WORLD_SIZE is 'eight'"),
        ("LOCAL_WORLD_SIZE", "9", "more than WORLD_SIZE, 8"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http'"),
        ("GROUP_RANK", "x", "GROUP_RANK is 'x'"),
    ],
)
def test_nonsense_names_the_variable(name: str, value: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        discover(TORCHRUN | {name: value})
    assert words in str(raised.value)


@settings(deadline=None)
@given(values=st.fixed_dictionaries(dict.fromkeys(TORCHRUN, st.text(max_size=3))))
def test_no_values_give_anything_but_a_place_or_a_report(values: dict[str, str]) -> None:
    try:
        found = discover(values)
    except UserError:
        return
    assert 0 <= found.rank < found.world_size
