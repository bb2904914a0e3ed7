"""Whole jobs, as `triax train` runs them, in processes forked from a warm parent.

A job's processes find each other as under torchrun. When one fails the others are ended, as a
launcher does, only sooner.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ports import free_port
from warm import fork

from triax.data.read.shards import ShardWriter

_SECONDS_FOR_THE_OTHERS = 3.0

VOCAB_SIZE = 64
SEQ_LEN = 16
CONFIG = """
[run]
name = "run"
dir = "{folder}"
[model]
num_layers = 2
hidden_size = 32
num_heads = 2
ffn_hidden_size = 48
vocab_size = {vocab_size}
[data]
sources = [{{ path = "{folder}/train" }}]
seq_len = {seq_len}
[precision]
compute = "fp32"
[batch]
global_batch_size = 8
micro_batch_size = 2
[optimizer]
lr = 5e-3
[schedule]
kind = "constant"
warmup = "4 steps"
[eval]
every = "none"
[metrics]
tensorboard = false
"""


def write_data(folder: Path, num_documents: int = 4000) -> None:
    """Sentences of a small language: each token limits the next one to four."""
    rng = np.random.default_rng(0)
    followers = rng.integers(1, VOCAB_SIZE, (VOCAB_SIZE, 4))
    with ShardWriter(folder / "train", np.dtype("<u2")) as writer:
        for _ in range(num_documents):
            token, document = int(rng.integers(1, VOCAB_SIZE)), []
            for choice in rng.integers(0, 4, 24):
                document.append(token)
                token = int(followers[token, choice])
            writer.add_document(np.array([*document, 0]))


def write_config(folder: Path) -> Path:
    """The small job's config in a file; its data is written if it isn't there."""
    if not (folder / "train.idx").exists():
        write_data(folder)
    path = folder / "run.toml"
    path.write_text(
        CONFIG.format(folder=folder, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN), encoding="utf-8"
    )
    return path


def steps(count: int) -> str:
    """The override that makes the run so many steps long."""
    return f"--budget.tokens={count * 8 * SEQ_LEN}"


def faults(*plan: dict[str, Any]) -> str:
    """The override that plans faults."""
    return f"--faults.plan={json.dumps(list(plan))}"


@dataclass
class Ended:
    """How a job ended."""

    codes: list[int]
    """Exit codes by rank; minus the signal's number where a signal ended it."""
    output: str
    run_dir: Path
    seconds: float
    ended_by_us: set[int] = field(default_factory=set)

    @property
    def code(self) -> int:
        """The job's, as a launcher tells it: a signal's before an error's before none."""
        own = [code for rank, code in enumerate(self.codes) if rank not in self.ended_by_us]
        return min(own) if min(own) < 0 else max(own)

    @property
    def exit(self) -> dict[str, Any]:
        """exit.json."""
        return dict(json.loads((self.run_dir / "exit.json").read_text()))

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a file of the run."""
        path = self.run_dir / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a name."""
        return [row for row in self.rows("events.jsonl") if row["event"] == name]

    def losses(self) -> dict[int, float]:
        """Loss by step."""
        return {row["step"]: row["loss"] for row in self.rows()}


def run_job(
    folder: Path,
    num_processes: int,
    *overrides: str,
    timeout: float = 90.0,
    of_rank: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> Ended:
    """Run the folder's config to its end, whatever that is; every wait is bounded.

    Args:
        overrides: arguments of all processes.
        of_rank: further ones of single processes.
    """
    began = time.monotonic()
    port = free_port() if num_processes > 1 else 0
    argv = [str(folder / "run.toml"), *overrides]
    log = folder / "output.txt"
    log.write_text("")
    workers = [
        fork(_work, rank, num_processes, port, [*argv, *of_rank.get(rank, ())], log)
        for rank in range(num_processes)
    ]
    ended = _wait(workers, time.monotonic() + timeout)
    name = next((o.split("=")[1] for o in overrides if o.startswith("--run.name=")), "run")
    codes = [worker.exitcode if worker.exitcode is not None else 0 for worker in workers]
    return Ended(codes, log.read_text(), folder / name, time.monotonic() - began, ended)


def _wait(workers: Sequence[Any], end: float) -> set[int]:
    """Wait for all; returns the ranks that had to be killed."""
    while any(worker.is_alive() for worker in workers):
        if any(worker.exitcode not in (None, 0) for worker in workers):
            end = min(end, time.monotonic() + _SECONDS_FOR_THE_OTHERS)
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    killed = {rank for rank, worker in enumerate(workers) if worker.is_alive()}
    for rank in killed:
        os.kill(workers[rank].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(10)
    return killed


def _work(rank: int, num_processes: int, port: int, argv: list[str], log: Path) -> None:
    # Imported here: the test process itself needs none of it.
    import torch

    from triax.launcher.train import main

    torch.set_num_threads(1)
    with log.open("a", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if num_processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
    code = 1
    try:
        code = main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
