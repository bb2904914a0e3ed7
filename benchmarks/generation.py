"""Tokens a second of `triax generate`'s loop beside `transformers.generate`, in one process.

    python benchmarks/generation.py --batches 1 16

A model of random weights is written as a folder of transformers' and read by both. They take turns,
greedily, with the same prompts; the texts must be equal, or the comparison is void. Beside the
speeds stands the share of the limit: every token of a batch has to read all weights once, at the
bandwidth that a plain sum over as many bytes reaches in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from triax.inference.generate import generate_batch
from triax.inference.load import find_model
from triax.inference.sampling import Sampling
from triax.models.layers.transformer import Transformer

CONFIG = transformers.LlamaConfig(
    vocab_size=8192, hidden_size=512, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, intermediate_size=1408, max_position_embeddings=1024,
    bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=True,
)  # fmt: skip
Write = Callable[[torch.Tensor, int], torch.Tensor]


def of_triax(model: Transformer) -> Write:
    def write(prompts_BT: torch.Tensor, num_tokens: int) -> torch.Tensor:
        steps = generate_batch(
            model,
            prompts_BT.tolist(),
            max_new_tokens=num_tokens,
            context=CONFIG.max_position_embeddings,
            sampling=Sampling(temperature=0),
            seeds=range(len(prompts_BT)),
        )
        rows = [[new.token for new in step if new is not None] for step in steps]
        return torch.tensor(rows).T

    return write


def of_transformers(model: Any) -> Write:
    def write(prompts_BT: torch.Tensor, num_tokens: int) -> torch.Tensor:
        texts_BT: torch.Tensor = model.generate(
            prompts_BT, do_sample=False, max_new_tokens=num_tokens, pad_token_id=0
        )
        return texts_BT[:, prompts_BT.shape[1] :]

    return write


def seconds_of_reading(num_bytes: int) -> float:
    data = torch.ones(num_bytes // 4)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new ones")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        theirs: Any = transformers.LlamaForCausalLM(CONFIG)
        theirs.eval()
        theirs.save_pretrained(folder)
        ours = find_model(folder).load()
    num_bytes = 4 * sum(parameter.numel() for parameter in ours.parameters())
    ways = {"triax": of_triax(ours), "transformers": of_transformers(theirs)}
    for batch in arguments.batches:
        prompts_BT = torch.randint(CONFIG.vocab_size, (batch, arguments.prompt))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            texts = []
            for name, write in ways.items():
                begin = time.perf_counter()
                texts.append(write(prompts_BT, arguments.tokens))
                seconds[name].append(time.perf_counter() - begin)
            if not torch.equal(*texts):
                sys.exit("the texts differ: the comparison is void")
        limit = batch / seconds_of_reading(num_bytes)
        print(f"batch {batch}: {arguments.tokens} tokens after {arguments.prompt}")
        speeds = {
            name: batch * arguments.tokens / statistics.median(times)
            for name, times in seconds.items()
        }
        for name, speed in speeds.items():
            print(
                f"  {name:14} {speed:9,.0f} tokens/s   {speed / speeds['transformers']:5.2f} x"
                f"   {speed / limit:6.1%} of the memory's limit"
            )


if __name__ == "__main__":
    main()
