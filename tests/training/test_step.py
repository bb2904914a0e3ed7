"""Nothing between the backward pass and the update waits for the device."""

from __future__ import annotations

import pytest
from fleet import run_fleet
from watched import located, watched_steps


@pytest.mark.parametrize("poison", [False, True])
def test_from_the_verdict_to_the_update_nobody_waits(poison: bool) -> None:
    for skipped in run_fleet(2, watched_steps, poison):
        assert skipped == [float(poison)] * 3


def test_the_first_module_with_a_non_finite_value_is_found() -> None:
    (found,) = run_fleet(1, located)
    assert found == [None, "blocks.1.mlp.up", "parameter blocks.1.mlp.up.weight"]
