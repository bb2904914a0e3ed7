"""What the framework adds to a step: a real run's loop against a plain PyTorch loop.

    python benchmarks/step_overhead.py --steps 60

The run is a whole job (engine, guard, metrics.jsonl, TensorBoard), but for what `[checkpoint]` and
`[eval]` do now and then. Its loader takes a plain step on the same batch, with a second copy of
the model, before it hands out each one. So both take turns in one process, and what else the
machine does falls on both. The figure is the median over steps of framework time over plain time.
Both must give the same losses, or the comparison is void.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch.nn.utils import clip_grad_norm_

from triax.data.read.loader import Loader
from triax.launcher.checks.sections import load_checked
from triax.launcher.cluster.launchers import discover
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.run import run as run_job
from triax.models.batch import Batch
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.parallel.config import PrecisionConfig
from triax.training.records.run_directory import RunDirectory
from triax.training.step.optimizer import optimizer_maker

CONFIG = """
[run]
name = "overhead"
[model]
preset = "{preset}"
[data]
sources = [{{ path = "data/train" }}]
tokenizer = "data/tokenizer"
seq_len = {seq_len}
prepare = {{ inputs = ["text"], output = "data", vocab_size = 4096 }}
[budget]
tokens = {tokens}
[precision]
compute = "fp32"
[batch]
global_batch_size = {batch}
micro_batch_size = {micro}
[optimizer]
lr = 1e-3
[schedule]
kind = "constant"
warmup = "1 steps"
[checkpoint]
every = "1B tokens"
"""
_NUM_WARMUP = 5
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class PlainLoop:
    """The same model and optimizer, as a tutorial would train them."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.device, self.config = device, config
        self.model = Transformer(config.model).to(device)
        initialise_model(self.model, self.model.description, config.run.seed)
        make = optimizer_maker(
            config.optimizer, PrecisionConfig(compute="fp32"), self.model.description.parameters
        )
        self.optimizer = make(dict(self.model.named_parameters()))
        self.losses: list[float] = []

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """Forward, backward, clip, update, and the loss to the host."""
        num_targets = sum(int(batch.num_targets) for batch in micro_batches)
        weight = torch.tensor(1 / num_targets, device=self.device)
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            there = batch.to(self.device)
            output = self.model(there.tokens_BT, there, weight)
            output.x.backward()
            total += output.sums["cross_entropy"]
        clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(total.item() / num_targets)


class Turns:
    """Takes and times a plain step before the run gets each batch from its loader."""

    def __init__(self, plain: PlainLoop, clock: Callable[[], float]) -> None:
        self.plain = plain
        self.clock = clock
        self.plain_seconds: list[float] = []
        self.framework_seconds: list[float] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Within, every loader's `iterate` lets the plain loop go first."""
        iterate = Loader.iterate

        def taking_turns(
            loader: Loader, cursor: int, stop_cursor: int
        ) -> Iterator[Sequence[Batch]]:
            for micro_batches in iterate(loader, cursor, stop_cursor):
                began = self._now()
                self.plain.step(micro_batches)
                middle = self._now()
                self.plain_seconds.append(middle - began)
                yield micro_batches
                self.framework_seconds.append(self._now() - middle)

        with mock.patch.object(Loader, "iterate", taking_turns):
            yield

    def _now(self) -> float:
        if self.plain.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()


def run(folder: Path, args: argparse.Namespace) -> None:
    """Run the job in the folder, silently, and report."""
    (folder / "text").mkdir()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:100]:
        (folder / "text" / path.with_suffix(".txt").name).write_bytes(path.read_bytes())
    tokens = args.steps * args.batch * args.seq_len
    (folder / "run.toml").write_text(CONFIG.format(tokens=tokens, **vars(args)))
    os.chdir(folder)
    config = load_checked("run.toml", args.overrides)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    turns = Turns(PlainLoop(config, device), _CLOCKS[args.clock])
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        turns.taken(),
    ):
        run_job(config, discover())
    report(config, turns)


def report(config: RunConfig, turns: Turns) -> None:
    """Print both medians and their ratio."""
    plain, framework = (
        seconds[_NUM_WARMUP:] for seconds in (turns.plain_seconds, turns.framework_seconds)
    )
    pairs = list(zip(plain, framework, strict=False))
    ratios = sorted(framework / plain for plain, framework in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    directory = RunDirectory(config.run_dir)
    losses = [row["loss"] for row in directory.rows(directory.metrics)]
    apart = max(abs(a - b) / a for a, b in zip(turns.plain.losses, losses, strict=False))
    print(f"{config.model.preset} on {turns.plain.device}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(f"batch              {config.batch.global_batch_size} x {config.data.seq_len}")
    print(f"plain loop         {1e3 * statistics.median(plain):10.2f} ms a step (median)")
    print(f"framework          {1e3 * statistics.median(framework):10.2f} ms a step (median)")
    print(f"ratio              {middle:10.4f}  (quartiles {low:.4f} to {high:.4f}, "
          f"{len(pairs)} pairs)")  # fmt: skip
    print(f"losses differ by   {apart:10.1e}  at most (relative)")


def main() -> int:
    """Parse the arguments, run and report."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--preset", default="mini-10m")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step (8)")
    parser.add_argument("--micro", type=int, default=8, help="sequences a micro-batch (8)")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--clock", choices=list(_CLOCKS), default="wall",
        help="cpu: time of all this process's threads, steadier where others use the machine",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", help="config overrides: section.key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args)
        os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
