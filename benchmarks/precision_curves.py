"""Loss curves of bf16, fp8 and fp32 on real text (docs/precision.md).

    python benchmarks/precision_curves.py --steps 1000 --seeds 3 \\
        --output benchmarks/results/fp8_curves.md

Trains one small model on the text of examples/quickstart.toml in each precision, with each seed
from the same weights on the same data in the same order. What lies between bf16's two runs, which
only add in another order, is bf16's own noise. Runs go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch

CONFIG = "examples/quickstart.toml"
SMALL = (
    "--model.num_layers=4", "--model.hidden_size=128", "--model.num_heads=4",
    "--model.num_kv_heads=2", "--model.head_dim=32", "--model.ffn_hidden_size=384",
    "--data.seq_len=128", "--batch.global_batch_size=8",
    "--eval.every=none", "--checkpoint.every=500 steps", "--metrics.tensorboard=false",
)  # fmt: skip
TOKENS_PER_STEP = 128 * 8
WHOLE = "--batch.micro_batch_size=8"
RUNS: dict[str, tuple[str, ...]] = {
    "bf16": ("--precision.compute=bf16", WHOLE),
    "bf16, four micro-batches": ("--precision.compute=bf16", "--batch.micro_batch_size=2"),
    "fp32": ("--precision.compute=fp32", WHOLE),
    "fp8 rowwise": ("--precision.compute=fp8", "--precision.fp8_recipe=rowwise", WHOLE),
    "fp8 tensorwise": ("--precision.compute=fp8", WHOLE),
}


def train(name: str, seed: int, num_steps: int) -> list[float]:
    """The losses of a run's steps."""
    run = f"curve-{name.replace(',', '').replace(' ', '-')}-{seed}"
    command = [sys.executable, "-m", "triax.launcher.train", CONFIG, f"--run.name={run}"]
    command += [*SMALL, f"--budget.tokens={num_steps * TOKENS_PER_STEP}", f"--run.seed={seed}"]
    command += RUNS[name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{ended.stdout}\n{ended.stderr}")
    rows = Path("runs", run, "metrics.jsonl").read_text().splitlines()
    losses = {row["step"]: row["loss"] for row in map(json.loads, rows) if "loss" in row}
    return [losses[step] for step in range(1, num_steps + 1)]


def table(curves: dict[str, list[list[float]]], num_steps: int) -> list[str]:
    """The mean loss over the seeds of four tenths of the run, and how far the last half is from
    bf16's of the same seed."""
    tenth = num_steps // 10
    begins = [number * tenth for number in (0, 2, 5, 9)]
    headings = [f"steps {begin + 1}-{begin + tenth}" for begin in begins]
    lines = [
        f"| | {' | '.join(headings)} | last half beside bf16's |",
        "|---" * (len(begins) + 2) + "|",
    ]
    halves = {
        name: [statistics.fmean(losses[num_steps // 2 :]) for losses in of_seeds]
        for name, of_seeds in curves.items()
    }
    for name, of_seeds in curves.items():
        cells = [
            f"{statistics.fmean(statistics.fmean(x[b : b + tenth]) for x in of_seeds):.4f}"
            for b in begins
        ]
        gaps = [100 * (a / b - 1) for a, b in zip(halves[name], halves["bf16"], strict=True)]
        cells.append(f"{statistics.fmean(gaps):+.2f}% ({min(gaps):+.2f} to {max(gaps):+.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str]) -> int:
    """Train what isn't trained yet, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="a multiple of 10")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each precision")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    with ThreadPoolExecutor(args.jobs) as pool:
        running = {
            name: [pool.submit(train, name, seed, args.steps) for seed in range(args.seeds)]
            for name in RUNS
        }
        curves = {name: [each.result() for each in runs] for name, runs in running.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        "# Loss curves of bf16, fp8 and fp32 on real text",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- device: {device}; torch {torch.__version__}, Python {sys.version.split()[0]}",
        f"- command: `{shlex.join(['python', 'benchmarks/precision_curves.py', *argv])}`",
        f"- {args.steps:,} steps of {TOKENS_PER_STEP:,} tokens; means of a tenth of the steps",
        f"- {args.seeds} seeds",
        "",
        *table(curves, args.steps),
    ]
    print("\n".join(lines))
    if args.output is not None:
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
