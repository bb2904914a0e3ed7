"""Real training jobs of a tiny model, as a user types them or in workers forked from a warm parent.

A command's start costs seconds, most of them torch's import; a forked worker starts in a fraction
of one and runs the very `main` that torchrun would start, so it can be killed like one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port
from warm import fork

NUM_STEPS = 24
CONFIG = """\
[run]
name = "job"
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
validation = "data/validation"
tokenizer = "tokenizer"
seq_len = 32
[budget]
tokens = 6144
[precision]
compute = "fp32"
[batch]
global_batch_size = 8
micro_batch_size = 2
[optimizer]
lr = 1e-2
[checkpoint]
every = "4 steps"
[eval]
every = "10 steps"
batches = 2
prompts = []
"""
_WORDS = """
the a cat dog sat on mat red blue tree river runs fast slow over under house green bird sings loud
and so it went for many years until nobody could say who had begun
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    error: str

    @property
    def text(self) -> str:
        return self.out + self.error


def make_corpus(folder: Path) -> None:
    """Text that is in no repository, and what the command line makes of it."""
    chance = random.Random(20)
    lines = [
        " ".join(chance.choices(_WORDS.split(), k=chance.randint(5, 120))) + "." for _ in range(150)
    ]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    for command in (
        "tokenizer train corpus.jsonl --vocab-size 300 --output tokenizer",
        "data prepare corpus.jsonl --tokenizer tokenizer --output data --validation-fraction 0.1",
    ):
        ended = triax(folder, *command.split())
        assert ended.code == 0, ended.text


def make_job(corpus: Path, folder: Path) -> Path:
    """A folder of its own with the corpus's data and the config `run.toml`."""
    for name in ("data", "tokenizer"):
        shutil.copytree(corpus / name, folder / name, dirs_exist_ok=True)
    (folder / "run.toml").write_text(CONFIG)
    return folder


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    """Start a command in the folder, in a process group of its own.

    Its program is one of those that stand beside this Python, such as `triax` or `torchrun`.
    """
    return subprocess.Popen(
        [Path(sys.executable).with_name(argv[0]), *argv[1:]],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 90) -> Ended:
    """Wait for a started command; it and what it started don't outlive the wait."""
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, error = process.communicate(timeout=10)
        raise AssertionError(f"no end after {timeout} s:\n{out}\n{error}") from None
    return Ended(process.returncode, out, error)


def triax(folder: Path, *argv: str) -> Ended:
    """Type `triax argv...` in the folder."""
    return finish(start(folder, "triax", *argv))


def train(
    folder: Path,
    *overrides: str,
    num_processes: int = 1,
    config: str = "run.toml",
    signal_when: tuple[signal.Signals | None, Callable[[], bool]] | None = None,
    timeout: float = 90,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Train in forked workers; the code is that of the first worker to fail, or 0.

    A failed worker's peers get SIGTERM, and SIGKILL later, as a launcher sends them.

    Args:
        signal_when: sends the signal to all workers once the function says so.
        environment: more variables of the workers.
    """
    variables: list[dict[str, str]] = [{}]
    if num_processes > 1:
        port = free_port()
        variables = [
            {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            }
            for rank in range(num_processes)
        ]  # fmt: skip
    logs = [folder / f"worker-{rank}" for rank in range(num_processes)]
    for log in logs:
        log.with_suffix(".out").write_text("")
        log.with_suffix(".err").write_text("")
    argv = [config, *overrides]
    workers = [
        fork(work, folder, {**(environment or {}), **each}, log, argv)
        for each, log in zip(variables, logs, strict=True)
    ]
    codes = _wait(workers, signal_when, timeout)
    out = "".join(log.with_suffix(".out").read_text() for log in logs)
    error = "".join(log.with_suffix(".err").read_text() for log in logs)
    return Ended(next((code for code in codes if code), 0), out, error)


def _wait(
    workers: Sequence[Any],
    signal_when: tuple[signal.Signals | None, Callable[[], bool]] | None,
    timeout: float,
) -> list[int]:
    """Wait for all; returns the exit codes, those of the first to fail before the others."""
    end = time.monotonic() + timeout
    failed: list[int] = []
    while not failed and any(worker.is_alive() for worker in workers):
        assert time.monotonic() < end, "the workers hang"
        if signal_when is not None and signal_when[1]():
            _signal(workers, signal_when[0])
            signal_when = None
        time.sleep(0.002)
        failed = [worker.exitcode for worker in workers if worker.exitcode]
    for number in (signal.SIGTERM, signal.SIGKILL) if failed else ():
        _signal(workers, number)
        for worker in workers:
            worker.join(8)
    return failed + [worker.exitcode for worker in workers]


def _signal(workers: Sequence[Any], number: signal.Signals | None) -> None:
    for worker in workers:
        if number is not None and worker.is_alive():
            os.kill(worker.pid, number)


def work(folder: Path, variables: dict[str, str], log: Path, argv: Sequence[str]) -> None:
    """One worker, with a launcher's variables; it says what it says into `log`.out and .err."""
    for suffix, stream in ((".out", 1), (".err", 2)):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(folder)
    os.environ.update(variables)
    import torch

    from triax.launcher.train import main

    torch.set_num_threads(1)
    sys.exit(main(argv))


def read_rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, line by line; of a line that is being written nothing."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def curve(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm, line by line."""
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_rows(run)]


def read_events(run: Path, name: str) -> list[dict[str, Any]]:
    """The events of one name."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def kills(*plan: tuple[str, int, int | None]) -> str:
    """The override that plans a SIGKILL at each point, step and rank (None: every rank)."""
    faults = [{"point": point, "step": step, "rank": rank} for point, step, rank in plan]
    given = [{name: value for name, value in each.items() if value is not None} for each in faults]
    return "--faults.plan=" + json.dumps(given)
