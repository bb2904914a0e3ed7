"""Losses and gradient norms of real runs, recorded once: what `spike_detection.py` judges.

    python benchmarks/loss_traces.py FOLDER [--first-seed 100000] [--scale 1.0]

A transformer of one layer learns the bytes of Python's own standard library with AdamW and triax's
schedules, on one CPU core, under other batch sizes, seeds, schedules, rates and clippings. Runs of
one batch size are trained side by side, each with weights, text and a rate of its own: at a
sequence a batch they would take ten times as long one after the other. A file that is there
already is not made again; `--scale 0.1` makes a tenth of the runs. All of them take six minutes of
one core. The guard's constants were chosen on seeds below 10,000.

Shape letters: R runs, B sequences, T positions, H width, V bytes, P parameters.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from triax.training.config import ScheduleConfig
from triax.training.step.schedule import learning_rate

T, H, V, HEADS = 64, 48, 256, 3
BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.1
SHAPES = {
    "embed": (V, H), "positions": (T, H), "qkv": (H, 3 * H), "out": (H, H), "up": (H, 4 * H),
    "down": (2 * H, H), "head": (H, V),
}  # fmt: skip
HEALTHY = (
    # Sequences a batch, steps, runs: 50,040 steps in all.
    (1, 1000, 12), (1, 120, 80), (2, 1000, 10), (2, 120, 40), (4, 1000, 6), (8, 1000, 4),
    (16, 500, 2), (32, 300, 2), (64, 300, 2), (1, 120, 12),
)  # fmt: skip
CALM = ((8, 400, 20),)
"""Of a made-up language, whose loss hardly varies from step to step."""
RAMPS = ((1, 1000, 2), (4, 1000, 2))
"""Runs whose rate climbs from the 400th step on, by RAMP_FACTOR in all."""
RAMP_BEGINS, RAMP_FACTOR = 400, 100.0


@dataclass(frozen=True)
class Plan:
    """One run to record."""

    kind: str
    """healthy, calm, or ramp: the rate climbs in the end, which makes the loss diverge slowly."""
    batch: int
    steps: int
    seed: int
    schedule: str
    lr: float
    clip: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        schedule = ScheduleConfig.model_validate({"kind": self.schedule})
        lr = learning_rate(
            step + 1, peak=self.lr, schedule=schedule, total_tokens=self.steps, tokens_per_step=1
        )
        if self.kind == "ramp" and step > RAMP_BEGINS:
            lr *= RAMP_FACTOR ** ((step - RAMP_BEGINS) / (self.steps - RAMP_BEGINS))
        return lr


def plans(first_seed: int, scale: float) -> Iterator[list[Plan]]:
    """The runs, those that are trained side by side together; the seed decides what isn't named."""
    kinds = (("healthy", 0, HEALTHY), ("calm", 500, CALM), ("ramp", 900, RAMPS))
    for kind, offset, groups in kinds:
        seed = first_seed + offset
        for batch, steps, count in groups:
            runs = []
            for _ in range(max(1, round(count * scale))):
                draw = random.Random(seed)
                schedule = ("cosine", "wsd", "constant")[seed % 3]
                lr, clip = draw.choice((1e-3, 3e-3, 6e-3)), draw.choice((1.0, math.inf))
                if kind == "ramp":
                    schedule, lr, clip = "constant", 3e-3, 1.0
                runs.append(Plan(kind, batch, steps, seed, schedule, lr, clip))
                seed += 1
            yield runs


def text() -> Tensor:
    """The library's source files, one after the other, as bytes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests"}
    files = sorted(path for path in library.rglob("*.py") if not left_out & set(path.parts))
    whole = b"".join(path.read_bytes() for path in files)
    return torch.from_numpy(np.frombuffer(whole, np.uint8).copy())


def sentences(first_seed: int) -> Tensor:
    """Four megabytes in which each of 64 letters has four that may follow it."""
    generator = torch.Generator().manual_seed(first_seed)
    followers = torch.randint(64, (64, 4), generator=generator)
    letters = [torch.randint(64, (4096,), generator=generator)]
    for _ in range(1023):
        choices = torch.randint(4, (4096,), generator=generator)
        letters.append(followers[letters[-1], choices])
    return torch.stack(letters, dim=1).flatten().to(torch.uint8)


def losses_R(weights: dict[str, Tensor], tokens_RBT: Tensor) -> Tensor:
    """The mean cross entropy (R,) of each run's own model on its own (R, B, T + 1) tokens."""
    R, B = tokens_RBT.shape[:2]
    offsets_R = torch.arange(R)[:, None, None] * V
    x = weights["embed"].flatten(0, 1)[tokens_RBT[..., :-1] + offsets_R]
    x = (x + weights["positions"][:, None]).flatten(1, 2)
    qkv = torch.bmm(F.rms_norm(x, (H,)), weights["qkv"])
    q, k, v = qkv.view(R * B, T, 3, HEADS, H // HEADS).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + torch.bmm(mixed.transpose(1, 2).reshape(R, B * T, H), weights["out"])
    gate, up = torch.bmm(F.rms_norm(x, (H,)), weights["up"]).chunk(2, dim=-1)
    x = x + torch.bmm(F.silu(gate) * up, weights["down"])
    logits = torch.bmm(F.rms_norm(x, (H,)), weights["head"])
    targets = tokens_RBT[..., 1:].reshape(-1)
    return F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(R, -1).mean(1)


def train(runs: list[Plan], corpus: Tensor) -> list[list[tuple[float, float]]]:
    """Each run's loss and gradient norm (before clipping) at every step."""
    generators = [torch.Generator().manual_seed(run.seed) for run in runs]
    weights = {
        name: torch.stack(
            [torch.randn(shape, generator=g) * (0.02 if shape[0] > H else H**-0.5 / 2)
             for g in generators]
        ).requires_grad_()
        for name, shape in SHAPES.items()
    }  # fmt: skip
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    clips_R = torch.tensor([run.clip for run in runs])
    points = []
    for step in range(runs[0].steps):
        starts = [torch.randint(len(corpus) - T, (runs[0].batch, 1), generator=g)
                  for g in generators]  # fmt: skip
        tokens_RBT = corpus[torch.stack(starts) + torch.arange(T + 1)].long()
        losses = losses_R(weights, tokens_RBT)
        grads = dict(zip(weights, torch.autograd.grad(losses.sum(), [*weights.values()]),
                         strict=True))  # fmt: skip
        norms_R = sum(grad.flatten(1).square().sum(1) for grad in grads.values()).sqrt()  # type: ignore[union-attr]
        rates_R = torch.tensor([run.rate(step) for run in runs])
        factors_R = (clips_R / norms_R).clamp(max=1.0)
        for name, weight in weights.items():
            grad = grads[name] * factors_R[:, None, None]
            adamw(weight.data, grad, *moments[name], rates_R[:, None, None], step + 1)
        points.append(torch.stack((losses.detach(), norms_R), dim=1))
    return [[(loss, norm) for loss, norm in run.tolist()] for run in torch.stack(points, dim=1)]


def adamw(
    weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, rate: Tensor, step: int
) -> None:
    """Loshchilov and Hutter 2019, in place."""
    first.lerp_(grad, 1 - BETAS[0])
    second.lerp_(grad.square(), 1 - BETAS[1])
    root = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
    weight.mul_(1 - rate * DECAY).sub_(rate * (first / (1 - BETAS[0] ** step)) / root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-seed", type=int, default=100_000)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    library = text()
    corpora = {"healthy": library, "calm": sentences(args.first_seed), "ramp": library}
    for runs in plans(args.first_seed, args.scale):
        kind = runs[0].kind
        path = args.folder / f"{kind}-{runs[0].batch}-{runs[0].steps}-from-{runs[0].seed}.json"
        if not path.exists():
            traces = zip(runs, train(runs, corpora[kind]), strict=True)
            rows = [{"plan": asdict(run), "points": points} for run, points in traces]
            path.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
