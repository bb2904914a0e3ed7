"""A layer with experts beside a dense one of the same FLOPs and transformers' own, in turns.

    python benchmarks/expert_layer.py [--threads N]

Prints the tokens per second of forward and backward passes, and ours over each. All layers with
experts have the same weights, and so the same load. With one thread its CPU time counts, which
others on the machine don't lengthen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

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
        "dense, same FLOPs": make_feed_forward(dense, WIDTH),
    }
    for kind in ("grouped_mm", "eager"):
        found[f"transformers, {kind}"] = _theirs(kind, ours)
    return found


@torch.no_grad()
def _theirs(implementation: str, ours: MixtureOfExperts) -> nn.Module:
    config = Qwen3MoeConfig(
        hidden_size=WIDTH, moe_intermediate_size=HIDDEN, num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K, norm_topk_prob=True,
    )  # fmt: skip
    config._experts_implementation = implementation
    block: Any = Qwen3MoeSparseMoeBlock(config)
    block.gate.weight.copy_(ours.router.weight)
    block.experts.gate_up_proj.copy_(torch.cat((ours.experts.gate, ours.experts.up), 1))
    block.experts.down_proj.copy_(ours.experts.down)
    x = torch.randn(1, 64, WIDTH)
    torch.testing.assert_close(block(x), ours(x).x, rtol=1e-4, atol=1e-5)
    module: nn.Module = block
    return module


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    num_threads = parser.parse_args().threads
    torch.set_num_threads(num_threads)
    clock = time.process_time if num_threads == 1 else time.perf_counter
    x = torch.randn(4, NUM_TOKENS // 4, WIDTH, requires_grad=True)
    gradient, compared = torch.randn_like(x), layers()
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(ROUNDS):
        for name, layer in compared.items():
            started = clock()
            layer(x).backward(gradient)
            seconds[name].append(clock() - started)
    medians = {name: statistics.median(values[LEFT_OUT:]) for name, values in seconds.items()}
    for name, value in medians.items():
        rate, ratio = NUM_TOKENS / value, value / medians["ours"]
        print(f"{name:26} {rate:9,.0f} tokens/s; ours has {ratio:.2f} times as many")


if __name__ == "__main__":
    main()
