"""What the guard costs of a training step, measured in one run.

    python benchmarks/guard_overhead.py [--preset mini-10m] [--steps 12]

Every step is a whole one (forward, backward, verdict, update) on one process, on the GPU if there
is one. The verdict is timed within it: on the GPU by events on the stream, with the host's time
beside it, since the host runs ahead and only the larger of the two can be felt.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.distributed as dist
from torch import Tensor

from triax.models.batch import Batch
from triax.models.description import describe
from triax.models.families import model_config
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.engines.native import NativeEngine
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh
from triax.training.config import OptimizerConfig
from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Guard, Verdict
from triax.training.step.optimizer import optimizer_maker
from triax.training.step.precision import LossScaler
from triax.training.step.step import StepContext, train_step


class TimedGuard(Guard):
    """Notes how long each verdict takes, in seconds."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(StabilityConfig(adaptive_clip_percentile=90.0), device)
        self.host: list[float] = []
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def judge(self, loss: Tensor, grad_norm: Tensor, has_targets: Tensor | None = None) -> Verdict:
        pair = None
        if loss.is_cuda:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
        began = time.perf_counter()
        verdict = super().judge(loss, grad_norm, has_targets)
        self.host.append(time.perf_counter() - began)
        if pair is not None:
            pair[1].record()
            self.events.append(pair)
        return verdict

    def on_device(self) -> list[float]:
        """Seconds of each verdict on the GPU; call when it is done."""
        return [begin.elapsed_time(end) / 1000 for begin, end in self.events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="mini-10m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    model = model_config(preset=args.preset, vocab_size=4096)
    parallel = ParallelConfig()
    precision = PrecisionConfig(compute="bf16" if device.type == "cuda" else "fp32")
    engine = NativeEngine(
        model,
        build_mesh(Layout.of(parallel, 1), device.type),
        parallel,
        precision=precision,
        seed=0,
        seq_len=args.seq_len,
        make_optimizer=optimizer_maker(
            OptimizerConfig(), precision, describe(model).parameters, is_native=True
        ),
    )
    guard = TimedGuard(device)
    context = StepContext(engine, LossScaler(precision, device), guard, 1.0)
    seconds = []
    for step in range(args.steps + 2):
        tokens = torch.randint(model.vocab_size, (args.batch, args.seq_len + 1))
        began = time.perf_counter()
        result = train_step(context, [Batch(tokens[:, :-1], tokens[:, 1:])], lr=1e-4)
        result.loss.item()
        if step >= 2:
            seconds.append(time.perf_counter() - began)
    step_time, host = statistics.median(seconds), statistics.median(guard.host[2:])
    cost = max([host, *([statistics.median(guard.on_device()[2:])] if guard.events else [])])
    print(f"device {device.type}, {args.preset}, {args.batch} x {args.seq_len} tokens")
    print(f"step {step_time * 1e3:.2f} ms, verdict {cost * 1e3:.3f} ms, of the step: "
          f"{cost / step_time:.3%}")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
