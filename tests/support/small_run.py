"""A training run of a few seconds for tests that start it as a user would, in any place."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = """\
[run]
name = "alone"
[model]
num_layers = 2
hidden_size = 32
num_heads = 2
num_kv_heads = 1
ffn_hidden_size = 64
vocab_size = 304
tie_embeddings = true
[data]
sources = [{ path = "data/train" }]
tokenizer = "tokenizer"
seq_len = 32
[budget]
tokens = "TOKENS"
[precision]
compute = "fp32"
[batch]
global_batch_size = 8
[optimizer]
lr = 3e-3
eps = 1e-5
[checkpoint]
every = "EVERY steps"
[metrics]
tensorboard = false
"""
TOKENS_PER_STEP = 8 * 32
_TEXT = "when the last ship had left nobody in that town knew what rain was good for"


def command(name: str) -> str:
    """A program that stands beside this Python."""
    return str(Path(sys.executable).with_name(name))


def make_run(folder: Path, num_steps: int, save_every: int = 1000) -> None:
    """Put data and `run.toml` into the folder."""
    chance = random.Random(5)
    text = "\n".join(
        " ".join(chance.choices(_TEXT.split(), k=chance.randint(5, 90))) + "." for _ in range(300)
    )
    (folder / "text.txt").write_text(text)
    tokens = str(num_steps * TOKENS_PER_STEP)
    config = CONFIG.replace('"TOKENS"', tokens).replace("EVERY", str(save_every))
    (folder / "run.toml").write_text(config)
    for arguments in (
        "tokenizer train text.txt --vocab-size 300 --output tokenizer",
        "data prepare text.txt --tokenizer tokenizer --output data",
    ):
        subprocess.run(
            [command("triax"), *arguments.split()],
            cwd=folder, check=True, timeout=60, capture_output=True,
        )  # fmt: skip


def losses(folder: Path, name: str) -> list[float]:
    """The losses of a run by step, without gaps or repeats."""
    rows: list[dict[str, Any]] = [
        json.loads(line)
        for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]
