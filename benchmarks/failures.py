"""What failures cost a long run, simulated over a plan of the fault injector.

Kills are drawn at random (a constant rate), written as the `[faults]` plan that `triax train`
rehearses, and a run's clock is taken through it: steps, saves, lost work, restarts.

    python benchmarks/failures.py
    python benchmarks/failures.py --ranks 16384 --save 5 --restart 600 --days 54
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable

from triax.training.loop.intervals import best_interval, effective_share
from triax.training.stability_config import Fault, FaultsConfig

DAY, HOUR = 86_400.0, 3600.0
LLAMA3_RANKS, LLAMA3_DAYS, LLAMA3_FAILURES = 16_384, 54, 466
"""Grattafiori et al. 2024, section 3.3.4: 466 interruptions, over 90% effective training time."""


def drawn_plan(seconds: float, between: float, step: float, ranks: int, seed: int) -> FaultsConfig:
    """Kills of random ranks at random steps, on average one in `between` seconds of training."""
    draw, now, plan = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(1 / between)) < seconds:
        plan.append(Fault(kind="kill", step=1 + int(now / step), rank=draw.randrange(ranks)))
    return FaultsConfig(plan=tuple(plan))


def effective(
    plan: Iterable[Fault], *, steps: int, step: float, every: int, save: float, restart: float
) -> tuple[float, int]:
    """The share of the wall time that trained, and how many kills struck.

    A kill strikes once, when its step runs first, as the fault injector has it.
    """
    kills = sorted(fault.step for fault in plan)
    wall, done, next_kill = restart, 0, 0
    while done < steps:
        saved = done - done % every
        until = min(saved + every, steps)
        if next_kill < len(kills) and kills[next_kill] <= until:
            wall += max(0, kills[next_kill] - done) * step + restart
            done, next_kill = saved, next_kill + 1
            continue
        wall += (until - done) * step + save
        done = until
    return steps * step / wall, next_kill


def main() -> int:
    """Print one line for each number of ranks: interval, expected and simulated share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1024, 4096, 16_384])
    parser.add_argument("--process-fails-every", type=float, default=50_000.0, help="hours")
    parser.add_argument("--save", type=float, default=5.0, help="seconds that a save costs")
    parser.add_argument("--restart", type=float, default=600.0, help="seconds")
    parser.add_argument("--step", type=float, default=10.0, help="seconds")
    parser.add_argument("--days", type=float, default=float(LLAMA3_DAYS), help="of training")
    args = parser.parse_args()
    rate = LLAMA3_RANKS * LLAMA3_DAYS * 24 / LLAMA3_FAILURES
    print(f"Llama 3: a failure each {rate:,.0f} h of a GPU, over 90% effective\n")
    print("| ranks | fails every | save every | expected | simulated | kills |")
    print("|---|---|---|---|---|---|")
    for ranks in args.ranks:
        between = args.process_fails_every * HOUR / ranks
        interval = best_interval(args.save, between)
        expected = effective_share(interval, args.save, args.restart, between)
        steps = int(args.days * DAY / args.step)
        found = [
            effective(
                drawn_plan(steps * args.step, between, args.step, ranks, seed).plan,
                steps=steps, step=args.step, every=max(1, round(interval / args.step)),
                save=args.save, restart=args.restart,
            )
            for seed in range(20)
        ]  # fmt: skip
        share, kills = (sum(column) / len(found) for column in zip(*found, strict=True))
        print(
            f"| {ranks:,} | {between / HOUR:.2f} h | {interval / 60:.1f} min | {expected:.1%} "
            f"| {share:.1%} | {kills:.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
