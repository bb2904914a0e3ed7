"""This step's speed beside others', in one run on one device: ratios, since machines differ.

    python benchmarks/compare_speed.py --preset llama3.2-1b-untied --micro-batch-size 2 \\
        --output benchmarks/results/NAME.md

The rows:

- triax: the step that `triax bench` measures, with that command's defaults and overrides.
- bare: the same model's modules in a plain loop, FSDP2 with blocks compiled, torch's cross entropy
  and fused AdamW.
- transformers: `LlamaForCausalLM`, compiled as a whole, under autocast.
- torchtitan: its own model, parallelisation, loss, clipping and optimizer, compiled.

All start from the same weights (torchtitan's apart) and see the same tokens; weights, gradients
and moments are fp32, clipping is on. A rival that isn't installed or doesn't fit has a row that
says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rivals import RIVALS, Loop

from triax.common.errors import UserError
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.launchers import discover
from triax.launcher.cluster.process_group import joined
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.bench import bench
from triax.launcher.job.bench_config import bench_config
from triax.training.bench.batches import RandomBatches
from triax.training.bench.measure import Measured, measure, release_memory
from triax.training.bench.report import Report, as_table
from triax.training.records.hardware import device_name, multiplies_bf16
from triax.training.step.step import StepResult


@dataclass(frozen=True)
class Row:
    """One loop's figures, or why it has none."""

    name: str
    measured: Measured | None
    problem: str = ""

    @property
    def seconds(self) -> float:
        """Of the median step."""
        assert self.measured is not None
        return statistics.median(self.measured.step_seconds)


def batches_of(config: RunConfig, device: torch.device) -> RandomBatches:
    """The tokens that triax's step gets."""
    return RandomBatches(
        vocab_size=config.model.vocab_size,
        seq_len=config.data.seq_len,
        micro_batch_size=config.batch.micro_batch_size,
        num_micro_batches=1,
        dp_rank=0,
        mask_documents=False,
        pin_memory=device.type == "cuda",
    )


def measure_rival(
    name: str, make: Callable[[RunConfig, torch.device], Loop], config: RunConfig, num_steps: int
) -> Row:
    """Build a rival, measure it, and leave nothing of it."""
    environment = discover()
    release_memory()
    with joined(
        environment, timeout_seconds=600, save_seconds=600, run_dir=config.run_dir
    ) as processes:
        device = processes.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            return Row(name, _measured(make, config, device, num_steps))
        except ImportError as error:
            return Row(name, None, f"not installed ({error.name})")
        except UserError as error:
            return Row(name, None, str(error))
        except torch.OutOfMemoryError:
            return Row(name, None, "out of memory")
        except Exception as error:
            # Other people's code on whatever machine this is: the other rows are still worth it.
            traceback.print_exc()
            return Row(name, None, f"failed: {type(error).__name__}")
        finally:
            torch._dynamo.reset()
            release_memory()


def _measured(
    make: Callable[[RunConfig, torch.device], Loop],
    config: RunConfig,
    device: torch.device,
    num_steps: int,
) -> Measured:
    loop, batches = make(config, device), batches_of(config, device)
    nothing = torch.zeros((), device=device)

    def step(number: int) -> StepResult[torch.Tensor]:
        (batch,) = batches.of_step(number)
        loss = loop(_on(device, batch.tokens_BT), _on(device, batch.targets_BT))
        others = [nothing] * (len(StepResult._fields) - 2)
        return StepResult._make([loss.detach().float(), *others, {}])

    # Garbage is collected as in a run of triax, and in torchtitan's trainer.
    return measure(
        step,
        device,
        num_steps=num_steps,
        collect_garbage_every=config.run.collect_garbage_every,
    )


def _on(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(device, non_blocking=True)


def markdown(config: RunConfig, report: Report, rows: Sequence[Row], argv: Sequence[str]) -> str:
    """The table with all that is needed to repeat it."""
    setup = report.setup
    versions = {"Python": sys.version.split()[0], **setup.versions}
    for package in ("transformers", "torchtitan", "torchao"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = [
        f"# {setup.model}, {setup.compute}, {setup.micro_batch_size} x {setup.seq_len:,} tokens",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- device: {setup.device}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- command: `{shlex.join(['python', 'benchmarks/compare_speed.py', *argv])}`",
        f"- limit: {setup.num_tokens / report.limit.total:,.0f} tokens/s",
        "",
        "| loop | tokens/s | of the limit | triax is x as fast | step ms | peak GiB | first step s "
        "| first loss | last loss |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(config, report, row) for row in rows),
    ]
    return "\n".join((*lines, "", "```text", as_table(report, 15), "```", ""))


def _line(config: RunConfig, report: Report, row: Row) -> str:
    if row.measured is None:
        return f"| {row.name} | {row.problem} |" + " |" * 7
    num_tokens = config.batch.global_batch_size * config.data.seq_len
    cells = (
        row.name,
        f"{num_tokens / row.seconds:,.0f}",
        f"{report.limit.total / row.seconds:.3f}",
        f"{row.seconds / report.step_seconds:.3f}",
        f"{1e3 * row.seconds:,.1f}",
        f"{row.measured.memory.peak_gib:.2f}",
        f"{row.measured.first_step_seconds:.1f}",
        f"{row.measured.first_loss:.4f}",
        f"{row.measured.losses[-1]:.4f}",
    )
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str]) -> int:
    """Parse the arguments, measure all and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="llama3.2-1b-untied")
    parser.add_argument("--seq-len", type=int, help="default: that of `triax bench`")
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--precision", help="default: that of `triax bench`")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--output", type=Path, help="write the table here too")
    parser.add_argument("--overrides", nargs="*", default=[], help="for triax: section.key=value")
    args = parser.parse_args(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce itself
    overrides = [f"model.preset={args.preset}", f"batch.micro_batch_size={args.micro_batch_size}"]
    overrides += [] if args.seq_len is None else [f"data.seq_len={args.seq_len}"]
    overrides += [] if args.precision is None else [f"precision.compute={args.precision}"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = bench_config(None, [*overrides, *args.overrides], device, 1)
    has_bf16 = multiplies_bf16(torch.device(device))
    precision = config.precision.resolved(has_bf16=has_bf16)
    config = config.model_copy(update={"precision": precision})
    environment: Environment = discover()
    report = bench(config, environment, num_steps=args.steps)
    torch._dynamo.reset()
    release_memory()
    rows = [Row("triax", report.measured)]
    for name in args.rivals:
        _write(args.output, markdown(config, report, rows, argv))
        print(f"measuring {name} on {device_name(torch.device(device))}", file=sys.stderr)
        rows.append(measure_rival(name, RIVALS[name], config, args.steps))
    table = markdown(config, report, rows, argv)
    _write(args.output, table)
    print(table)
    return 0


def _write(output: Path | None, table: str) -> None:
    """Keep what there is after each row, should time run out."""
    if output is not None:
        output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
