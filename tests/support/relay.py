"""A run that is handed from one layout to another, through checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from fleet import run_fleet
from parity import TOLERANCE
from torch import Tensor
from worlds import Case, Leg, Run, plain_run, run_leg

STEPS_EACH = 2


def check_relay(
    folder: Path,
    legs: Sequence[tuple[int, Case]],
    plain_loop: Callable[[Case], Run] = plain_run,
) -> None:
    """Each leg (number of processes, job) reads bitwise what the former wrote, and all together
    give the losses of a plain loop."""
    losses: list[float] = []
    saved: dict[str, Tensor] = {}
    for number, (num_processes, case) in enumerate(legs):
        first_step = number * STEPS_EACH
        done = run_fleet(num_processes, run_leg, case, str(folder), first_step, STEPS_EACH)
        loaded = _whole_state(done, "loaded")
        if saved:
            assert loaded.keys() == saved.keys()
            for name in saved:
                torch.testing.assert_close(loaded[name], saved[name], rtol=0, atol=0, msg=name)
        saved = _whole_state(done, "saved")
        losses += done[0].losses
    assert any(name.endswith("exp_avg_sq") for name in saved)
    _, first = legs[0]
    plain = replace(first, parallel={}, num_steps=len(legs) * STEPS_EACH)
    [expected] = run_fleet(1, plain_loop, plain)
    torch.testing.assert_close(losses, expected.losses, rtol=TOLERANCE, atol=0)


def _whole_state(legs: list[Leg], which: str) -> dict[str, Tensor]:
    return {name: tensor for leg in legs for name, tensor in getattr(leg, which).items()}
