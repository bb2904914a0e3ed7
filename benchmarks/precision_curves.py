"""Loss curves of bf16, fp8 and fp32 on real text (docs/precision.md).

    python benchmarks/precision_curves.py --steps 1000 --output benchmarks/results/fp8_curves.md

Trains one small model on the text of examples/quickstart.toml in each precision, from the same
weights on the same data in the same order. What lies between fp32 and bf16 is what rounding alone
does to a run. Runs go on where they were stopped.
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
    "--data.seq_len=128", "--batch.global_batch_size=8", "--batch.micro_batch_size=8",
    "--eval.every=none", "--checkpoint.every=500 steps", "--metrics.tensorboard=false",
)  # fmt: skip
TOKENS_PER_STEP = 128 * 8
RUNS: dict[str, tuple[str, ...]] = {
    "bf16": ("--precision.compute=bf16",),
    "fp8 tensorwise": ("--precision.compute=fp8",),
    "fp8 rowwise": ("--precision.compute=fp8", "--precision.fp8_recipe=rowwise"),
    "fp32": ("--precision.compute=fp32",),
}


def train(name: str, num_steps: int) -> list[float]:
    """The losses of a run's steps."""
    run = f"curve-{name.replace(' ', '-')}"
    command = [sys.executable, "-m", "triax.launcher.train", CONFIG, f"--run.name={run}"]
    command += [*SMALL, f"--budget.tokens={num_steps * TOKENS_PER_STEP}", *RUNS[name]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{ended.stdout}\n{ended.stderr}")
    rows = Path("runs", run, "metrics.jsonl").read_text().splitlines()
    losses = {row["step"]: row["loss"] for row in map(json.loads, rows) if "loss" in row}
    return [losses[step] for step in range(1, num_steps + 1)]


def table(curves: dict[str, list[float]], num_steps: int) -> list[str]:
    """The mean loss of each tenth of the run, and how far it is from bf16's on average."""
    tenth, shown = num_steps // 10, (0, 2, 5, 9)
    means = {
        name: [statistics.fmean(losses[b : b + tenth]) for b in range(0, num_steps, tenth)]
        for name, losses in curves.items()
    }
    headings = [f"steps {tenth * number + 1}-{tenth * (number + 1)}" for number in shown]
    lines = [
        f"| | {' | '.join(headings)} | largest difference of a tenth |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for name, of_tenths in means.items():
        gap = max(abs(a / b - 1) for a, b in zip(of_tenths, means["bf16"], strict=True))
        cells = [*(f"{of_tenths[number]:.4f}" for number in shown), f"{100 * gap:.2f}%"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str]) -> int:
    """Train what isn't trained yet, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="a multiple of 10")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    with ThreadPoolExecutor(args.jobs) as pool:
        losses = list(pool.map(lambda name: train(name, args.steps), RUNS))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        "# Loss curves of bf16, fp8 and fp32 on real text",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- device: {device}; torch {torch.__version__}, Python {sys.version.split()[0]}",
        f"- command: `{shlex.join(['python', 'benchmarks/precision_curves.py', *argv])}`",
        f"- {args.steps:,} steps of {TOKENS_PER_STEP:,} tokens; means of a tenth of the steps",
        "",
        *table(dict(zip(RUNS, losses, strict=True)), args.steps),
    ]
    print("\n".join(lines))
    if args.output is not None:
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
