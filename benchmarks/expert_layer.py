"""A layer with experts beside a dense one of the same FLOPs and transformers' own, in turns.

    python benchmarks/expert_layer.py [--threads N]

Prints the median time of a forward and backward pass over that of ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from triax.models.architecture import Experts, FeedForward, FeedForwardKind, Router, ScoreKind
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.feed_forward import make_feed_forward

WIDTH, HIDDEN, NUM_EXPERTS, TOP_K, NUM_TOKENS = 256, 512, 8, 2, 2048
ROUNDS, LEFT_OUT = 12, 2


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """What is compared, by name; ours first."""
    router = Router(ScoreKind.SOFTMAX, TOP_K, is_normalised=True)
    ours = MixtureOfExperts(Experts(NUM_EXPERTS, HIDDEN, router), WIDTH)
    dense = FeedForward(FeedForwardKind.SWIGLU, TOP_K * HIDDEN)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda x: ours(x).x,
        "dense": make_feed_forward(dense, WIDTH),
    }
    for kind in ("grouped_mm", "eager"):
        found[f"transformers, {kind}"] = _theirs(kind)
    return found


def _theirs(implementation: str) -> nn.Module:
    config = Qwen3MoeConfig(
        hidden_size=WIDTH, moe_intermediate_size=HIDDEN, num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K, norm_topk_prob=True,
    )  # fmt: skip
    config._experts_implementation = implementation
    block: nn.Module = Qwen3MoeSparseMoeBlock(config)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.02)
    return block


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    x = torch.randn(4, NUM_TOKENS // 4, WIDTH, requires_grad=True)
    gradient, compared = torch.randn_like(x), layers()
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(ROUNDS):
        for name, layer in compared.items():
            started = time.perf_counter()
            layer(x).backward(gradient)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[LEFT_OUT:]) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:26} {value / medians['ours']:.2f} of our time")


if __name__ == "__main__":
    main()
