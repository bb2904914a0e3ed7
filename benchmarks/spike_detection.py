"""False alarms on clean runs, and which spikes are found: the tables of docs/stability.md.

    python benchmarks/spike_detection.py [--runs 20] [--steps 400]

A tiny model is trained for real on sentences of a small language, on one CPU core, under other
seeds, schedules, rates and clippings; the guard judges every step. Then each run's losses and
gradient norms are judged once more with a disturbance of each size and shape put into them. The
guard has its default settings.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.transformer import Transformer
from triax.parallel.config import PrecisionConfig
from triax.training.config import OptimizerConfig, ScheduleConfig
from triax.training.optimizer import optimizer_maker
from triax.training.schedule import learning_rate
from triax.training.stability.config import StabilityConfig
from triax.training.stability.guard import Guard, Reason

VOCAB_SIZE, SEQ_LEN, BATCH = 64, 32, 16
MODEL = model_config(
    **dict(num_layers=2, hidden_size=32, num_heads=2, ffn_hidden_size=64, vocab_size=VOCAB_SIZE)
)


class Point(NamedTuple):
    """One step's figures."""

    loss: float
    norm: float


Disturb = Callable[[int, Point], Point]
"""Changes a figure of the so-manieth step since the disturbance began."""


def train(seed: int, schedule: ScheduleConfig, lr: float, clip: float, steps: int) -> list[Point]:
    """The figures of a clean run."""
    torch.manual_seed(seed)
    followers = torch.randint(1, VOCAB_SIZE, (VOCAB_SIZE, 4))
    model = Transformer(MODEL)
    initialise_model(model, seed)
    table = model.description.parameters
    make_optimizer = optimizer_maker(OptimizerConfig(lr=lr), PrecisionConfig(), table)
    optimizer = make_optimizer(dict(model.named_parameters()))
    points = []
    for step in range(steps):
        tokens = sentences(followers)
        weight = torch.tensor(1.0 / (BATCH * SEQ_LEN))
        sums = model(tokens[:, :-1], tokens[:, 1:].contiguous(), None, weight)
        sums.objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step + 1, peak=lr, schedule=schedule, total_tokens=steps, tokens_per_step=1
            )
        optimizer.step()
        optimizer.zero_grad()
        points.append(Point(float(sums.cross_entropy) / (BATCH * SEQ_LEN), float(norm)))
    return points


def sentences(followers: Tensor) -> Tensor:
    """(BATCH, SEQ_LEN + 1) tokens, each one of four that may follow the one before."""
    tokens = [torch.randint(1, VOCAB_SIZE, (BATCH,))]
    for _ in range(SEQ_LEN):
        tokens.append(followers[tokens[-1], torch.randint(4, (BATCH,))])
    return torch.stack(tokens, dim=1)


def refusals(points: list[Point]) -> list[int]:
    """Numbers of the steps that a fresh guard refuses."""
    guard, found = Guard(StabilityConfig()), []
    for number, point in enumerate(points):
        verdict = guard.judge(torch.tensor(point.loss), torch.tensor(point.norm))
        if Reason(int(verdict.reasons)):
            found.append(number)
    return found


def louder(extra: float, steps: float, factor: float, at: int, point: Point) -> Point:
    """`extra` nats and a `factor` on the norm for so many steps."""
    return Point(point.loss + extra, point.norm * factor) if at < steps else point


def ramp(extra: float, steps: int, at: int, point: Point) -> Point:
    """A rise by `extra` nats over so many steps, which stays."""
    return Point(point.loss + extra * min(1.0, (at + 1) / steps), point.norm)


def nan(at: int, point: Point) -> Point:
    """One step that is not finite."""
    return Point(math.nan, math.nan) if at == 0 else point


SHAPES: dict[str, Disturb] = {
    "one step of NaN": nan,
    **{
        f"one step, loss +{x:g}": partial(louder, x, 1, 1.0)
        for x in (0.25, 0.5, 1.0, 2.0, 5.0)
    },
    **{f"one step, gradient norm x{x:g}": partial(louder, 0.0, 1, x) for x in (3.0, 10.0, 100.0)},
    **{f"10 steps, loss +{x:g}": partial(louder, x, 10, 1.0) for x in (0.5, 1.0)},
    **{f"shift for good, loss +{x:g}": partial(louder, x, math.inf, 1.0) for x in (0.5, 1.0)},
    **{f"rise by 2 over {n} steps": partial(ramp, 2.0, n) for n in (20, 60, 120)},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds = itertools.cycle(("cosine", "wsd", "constant"))
    rng, runs = random.Random(0), []
    for seed in range(args.runs):
        schedule = ScheduleConfig.model_validate({"kind": next(kinds)})
        runs.append(
            train(
                seed, schedule, rng.choice((1e-3, 3e-3, 1e-2)), rng.choice((1.0, 1e9)), args.steps
            )
        )
    alarms = [refusals(points) for points in runs]
    print(f"false alarms: {sum(map(len, alarms))} in {len(runs)} clean runs of {args.steps} steps")
    print("\n| disturbance | found | steps until found (median) |\n|---|---|---|")
    begin = args.steps // 2
    for name, disturb in SHAPES.items():
        delays = []
        for points in runs:
            after = [disturb(at, point) for at, point in enumerate(points[begin:])]
            found = [n - begin for n in refusals([*points[:begin], *after]) if n >= begin]
            delays += found[:1]
        delay = f"{statistics.median(delays):g}" if delays else ""
        print(f"| {name} | {len(delays)} of {len(runs)} | {delay} |")


if __name__ == "__main__":
    main()
