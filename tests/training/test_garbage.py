"""Python's garbage is collected when the loop says so, and only then."""

from __future__ import annotations

import gc

import pytest

from triax.training.loop.garbage import GarbageControl


def collections(every: int | None, num_steps: int) -> list[int]:
    """The steps after which the collector ran, with much garbage made in each."""
    ran: list[int] = []
    control, step = GarbageControl(every), 0

    def note(phase: str, _info: dict[str, int]) -> None:
        if phase == "start" and step:
            ran.append(step)

    gc.callbacks.append(note)
    try:
        with control:
            for step in range(1, num_steps + 1):
                kept = [[number] for number in range(5000)]
                del kept
                control.after_step(step)
            step = 0
    finally:
        gc.callbacks.remove(note)
    return ran


def test_it_runs_after_its_steps_and_never_between() -> None:
    assert collections(4, 10) == [4, 8]


def test_python_is_left_alone_on_request() -> None:
    assert set(collections(None, 10)) >= {1, 2, 3}


def test_all_is_as_before_when_a_step_fails() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(KeyError), GarbageControl(4):
        assert not gc.isenabled() and gc.get_freeze_count() > before
        raise KeyError
    assert gc.isenabled() and gc.get_freeze_count() == 0
