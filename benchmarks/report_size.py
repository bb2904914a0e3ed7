"""Write a run directory as a long run leaves it, and measure `triax report` on it.

    python benchmarks/report_size.py --steps 1000000

Says the page's size, the seconds that it took by clock and by processor, and the most memory. Rows
have 13 figures, with a spike of one step now and then that the page must keep.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import tempfile
import time
from pathlib import Path

from triax.launcher.report.build import build_page

_CONFIG = """\
[run]
name = "long"
[model]
preset = "mini-10m"
[data]
sources = [{ path = "corpora/long/train" }]
seq_len = 512
[batch]
global_batch_size = 8
"""
_SPIKES = 100


def write_run(folder: Path, num_steps: int) -> None:
    """A run's folder with so many lines of figures."""
    folder.mkdir()
    (folder / "config.toml").write_text(_CONFIG)
    chance = random.Random(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, num_steps + 1):
            loss = 2 + 8 * math.exp(-6 * step / num_steps) + chance.gauss(0, 0.05)
            loss += 20 * (step % (num_steps // _SPIKES) == 7)
            file.write(
                f'{{"step": {step}, "tokens": {4096 * step}, "cursor": {8 * step}, '
                f'"loss": {loss:.6f}, "grad_norm": {abs(chance.gauss(1, 0.2)):.6f}, '
                f'"lr": {1e-3 * (1 - step / num_steps):.9f}, '
                f'"tokens_per_second": {chance.gauss(5e3, 2e2):.3f}, "mfu": 0.41, '
                f'"memory_gib": 1.5, "num_targets": 4096, "skipped": 0, '
                f'"loss_score": {chance.gauss(0, 1):.4f}, '
                f'"norm_score": {chance.gauss(0, 1):.4f}}}\n'
            )
    with (folder / "events.jsonl").open("w") as file:
        for number in range(1, 1001):
            step = number * num_steps // 1000
            at = f'"time": {1.7e9 + step}, "step": {step}'
            file.write(f'{{"event": "evaluation", {at}, "loss": {12 - number / 100:.3f}}}\n')
            file.write(f'{{"event": "checkpoint", {at}, "seconds": 1.5, "bytes": 100000000}}\n')


def main() -> None:
    """Write, build, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="write the page here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "long"
        write_run(run, args.steps)
        file_mib = (run / "metrics.jsonl").stat().st_size / 2**20
        began, worked = time.perf_counter(), time.process_time()
        page = build_page([run])
        seconds, work = time.perf_counter() - began, time.process_time() - worked
    if args.keep is not None:
        args.keep.write_text(page, encoding="utf-8")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.steps:,} steps, metrics.jsonl of {file_mib:,.0f} MiB")
    print(
        f"page {len(page.encode()) / 1e6:.2f} MB in {seconds:.1f} s ({work:.1f} s of a processor)"
    )
    print(f"at most {memory:.2f} GiB of memory")


if __name__ == "__main__":
    main()
