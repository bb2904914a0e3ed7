"""False alarms on clean runs, and which spikes are found: the tables of docs/stability.md.

    python benchmarks/loss_traces.py TRACES
    python benchmarks/spike_detection.py TRACES

The guard, with its default settings, judges every step of the recorded clean runs. Then each run
is judged from several of its steps on with a disturbance of each size and shape put into it. The
same follows for runs of a made-up language, whose loss is calm, and last come the runs whose rate
was raised until they diverged.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Guard, Reason

EARLY, LATE = (40,), (200, 350, 500, 650, 800)
"""Steps at which a run is disturbed: soon after the guard's first word, and later."""
MOST_STEPS = 200
"""A disturbance that isn't found within so many steps isn't found."""
SETTINGS = StabilityConfig()


class Point(NamedTuple):
    """One step's figures."""

    loss: float
    norm: float


@dataclass(frozen=True)
class Trace:
    """A recorded run."""

    batch: int
    steps: int
    seed: int
    points: list[Point]


Disturb = Callable[[int, Point], Point]
"""Changes a figure of the so-manieth step since the disturbance began."""


def louder(extra: float, steps: float, factor: float, at: int, point: Point) -> Point:
    """`extra` nats and a `factor` on the norm for so many steps."""
    return Point(point.loss + extra, point.norm * factor) if at < steps else point


def ramp(extra: float, steps: int, at: int, point: Point) -> Point:
    """A rise by `extra` nats over so many steps, which stays."""
    return Point(point.loss + extra * min(1.0, (at + 1) / steps), point.norm)


def nan(at: int, point: Point) -> Point:
    """One step that is not finite."""
    return Point(math.nan, math.nan) if at == 0 else point


SHAPES: dict[str, tuple[int, Disturb]] = {
    # Its length, and what it does.
    "one step of NaN": (1, nan),
    **{f"one step, loss +{x:g}": (1, partial(louder, x, 1, 1.0))
       for x in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)},
    **{f"one step, gradient norm x{x:g}": (1, partial(louder, 0.0, 1, x))
       for x in (3.0, 10.0, 30.0, 100.0)},
    **{f"10 steps, loss +{x:g}": (10, partial(louder, x, 10, 1.0)) for x in (0.5, 1.0)},
    **{f"shift for good, loss +{x:g}": (MOST_STEPS, partial(louder, x, math.inf, 1.0))
       for x in (0.5, 1.0)},
    **{f"rise by 2 over {n} steps": (MOST_STEPS, partial(ramp, 2.0, n)) for n in (20, 60, 120)},
}  # fmt: skip


def read(folder: Path, kind: str) -> list[Trace]:
    """The recorded runs of a kind, by batch size."""
    traces = []
    for path in folder.glob(f"{kind}-*.json"):
        for row in json.loads(path.read_text()):
            plan, points = row["plan"], [Point(*point) for point in row["points"]]
            traces.append(Trace(plan["batch"], plan["steps"], plan["seed"], points))
    return sorted(traces, key=lambda trace: (trace.batch, trace.seed))


Length = tuple[int, int]
"""Sequences a batch, and steps: runs of one length are judged side by side."""
State = tuple[Tensor, ...]
"""A guard's tensors; here with a first dimension of runs."""
_NAMES = ("_values_4W", "_count", "_seen_S", "_num_seen", "_lowest_h", "_lowest_sigma_h")


def guard_of(state: State) -> Guard:
    """A guard that goes on from there."""
    guard = Guard(SETTINGS)
    vars(guard).update(zip(_NAMES, state, strict=True))
    return guard


def judge(state: State, loss: Tensor, norm: Tensor) -> tuple[State, Tensor]:
    """One step of one run: the guard's state after it, and the reasons to refuse it."""
    guard = guard_of(state)
    verdict = guard.judge(loss, norm)
    return tuple(vars(guard)[name] for name in _NAMES), verdict.reasons


def noise(state: State) -> Tensor:
    """The deviations (2,) of loss and log norm, as the guard estimates them."""
    return guard_of(state)._deviations(state[0][2:].sort(dim=1).values)


judge_all, noise_of_all = torch.func.vmap(judge), torch.func.vmap(noise)
"""The same guard over many runs at once: one after the other would take hours."""


def fresh(num_runs: int) -> State:
    """The states of guards that have seen nothing."""
    guard = Guard(SETTINGS)
    return tuple(vars(guard)[name].expand(num_runs, *vars(guard)[name].shape) for name in _NAMES)


def refusals(traces: list[Trace]) -> tuple[Tensor, dict[int, State]]:
    """Reasons (runs, steps) of runs of one length, and the guards' states at some steps."""
    points = torch.tensor([trace.points for trace in traces])
    state, reasons, states = fresh(len(traces)), [], {}
    for step in range(points.shape[1]):
        if step in EARLY + LATE:
            states[step] = state
        state, reason = judge_all(state, points[:, step, 0], points[:, step, 1])
        reasons.append(reason)
    return torch.stack(reasons, dim=1), states


def by_length(traces: list[Trace]) -> dict[Length, list[Trace]]:
    """The runs of each batch size and number of steps."""
    lengths = sorted({(trace.batch, trace.steps) for trace in traces})
    return {
        length: [trace for trace in traces if (trace.batch, trace.steps) == length]
        for length in lengths
    }


def tell_clean(traces: list[Trace]) -> dict[Length, dict[int, State]]:
    """Print the table of false alarms; returns the guards' states, by length of run and step."""
    states, lines = {}, []
    table: dict[int, list[int]] = {}
    for length, runs in by_length(traces).items():
        reasons, states[length] = refusals(runs)
        counts = (len(runs), reasons.numel(), int((reasons > 0).sum()))
        before = table.get(length[0], [0, 0, 0])
        table[length[0]] = [a + b for a, b in zip(before, counts, strict=True)]
        lines += [
            f"batch {length[0]}, seed {runs[run].seed}, step {step}: "
            f"{Reason(int(reasons[run, step])).describe()}"
            for run, step in reasons.nonzero().tolist()
        ]
    print("| sequences a batch | runs | steps | refused |\n|---|---|---|---|")
    for batch, (num_runs, num_steps, num_refused) in table.items():
        print(f"| {batch} | {num_runs} | {num_steps:,} | {num_refused} |")
    print("", *lines, "", sep="\n", flush=True)
    return states


def delays(traces: list[Trace], states: dict[int, State], begins: Sequence[int], length: int,
           disturb: Disturb) -> list[int | None]:  # fmt: skip
    """Steps until a disturbance is found in each run, from each step on; None if it isn't."""
    begins = [begin for begin in begins if begin + length <= traces[0].steps and begin in states]
    if not begins:
        return []
    state = tuple(map(torch.cat, zip(*(states[begin] for begin in begins), strict=True)))
    found: list[int | None] = [None] * (len(begins) * len(traces))
    for at in range(length):
        points = torch.tensor(
            [disturb(at, run.points[begin + at]) for begin in begins for run in traces]
        )
        state, reasons = judge_all(state, points[:, 0], points[:, 1])
        found = [
            at if was is None and reason else was
            for was, reason in zip(found, reasons.tolist(), strict=True)
        ]
        if None not in found:
            break
    return found


def tell_disturbed(
    traces: list[Trace], states: dict[Length, dict[int, State]], begins: Sequence[int]
) -> None:
    """Print which disturbances are found from these steps on, by batch size, below the noise."""
    groups = by_length(traces)
    batches = sorted({batch for batch, _ in groups})
    print(f"begun at step {', '.join(map(str, begins))}: found of tried (steps until then, median)")
    print("\n| disturbance |" + "".join(f" {batch} a batch |" for batch in batches))
    print("|---" * (len(batches) + 1) + "|")
    for index, name in enumerate(("loss, nats", "log norm")):
        cells = []
        for batch in batches:
            noises = [
                value
                for length in groups
                for step in begins
                if length[0] == batch and step in states[length]
                for value in noise_of_all(states[length][step])[:, index].tolist()
            ]
            cells.append(f"{statistics.median(noises):.2f}")
        print(f"| *noise of a step's {name}* | " + " | ".join(cells) + " |", flush=True)
    for name, (num_steps, disturb) in SHAPES.items():
        cells = []
        for batch in batches:
            tried = [
                steps
                for length, runs in groups.items()
                if length[0] == batch
                for steps in delays(runs, states[length], begins, num_steps, disturb)
            ]
            found = [steps for steps in tried if steps is not None]
            after = f" ({statistics.median(found):g})" if found and num_steps > 1 else ""
            cells.append(f"{len(found)}/{len(tried)}{after}" if tried else "")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print()


def tell_ramps(traces: list[Trace]) -> None:
    """Print when runs with a rising rate are found, and how far their loss had risen by then."""
    print("| sequences a batch | lowest loss (median of 128 steps) | first refused | loss there | "
          "half refused from | loss at the end |\n|---|---|---|---|---|---|")  # fmt: skip
    for trace, reasons in zip(traces, refusals(traces)[0], strict=True):
        refused = reasons.nonzero()[:, 0].tolist()
        levels = [
            statistics.median(point.loss for point in trace.points[max(0, step - 127) : step + 1])
            for step in range(trace.steps)
        ]
        there = f"{levels[refused[0]]:.2f}" if refused else ""
        trouble = next((b for a, b in zip(refused, refused[19:], strict=False) if b - a < 40), None)
        print(f"| {trace.batch} | {min(levels[127:]):.2f} | {refused[0] if refused else None} "
              f"| {there} | {trouble} | {levels[-1]:.2f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("traces", type=Path, help="what loss_traces.py has recorded")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind in ("healthy", "calm"):
        traces = read(args.traces, kind)
        print(f"## {kind}\n")
        states = tell_clean(traces)
        for begins in (EARLY, LATE):
            tell_disturbed(traces, states, begins)
    tell_ramps(read(args.traces, "ramp"))


if __name__ == "__main__":
    main()
