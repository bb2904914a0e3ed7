"""Several processes of one job, forked from a warm parent: they start in a fraction of a second."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from warm import fork

T = TypeVar("T")


def run_fleet(
    num_processes: int,
    function: Callable[..., T],
    *args: Any,
    timeout: float = 120.0,
    may_fail: bool = False,
    backend: str = "gloo",
) -> list[T]:
    """Call `function(*args)` in so many processes joined by gloo, or by another backend; returns
    their results by rank.

    A process's exception is raised here with its traceback; with `may_fail`, results of failed
    ranks are the exception's text, or None where a process died. Every wait is bounded.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            fork(_work, rank, num_processes, Path(folder), backend, may_fail, function, args)
            for rank in range(num_processes)
        ]
        _wait(workers, time.monotonic() + timeout, may_fail)
        results = [_read(Path(folder) / f"{rank}.pkl") for rank in range(num_processes)]
    failures = [(rank, text) for rank, (ok, text) in enumerate(results) if not ok]
    if failures and not may_fail:
        raise AssertionError("\n".join(f"rank {rank}:\n{text}" for rank, text in failures))
    return [value for _, value in results]


def _wait(workers: Sequence[Any], end: float, may_fail: bool) -> None:
    while any(worker.is_alive() for worker in workers):
        failed = [worker for worker in workers if worker.exitcode not in (None, 0)]
        if time.monotonic() > end or (failed and not may_fail):
            time.sleep(0.5)  # let the peers write what they make of it
            break
        time.sleep(0.01)
    for worker in workers:
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
        worker.join(10)


def _read(path: Path) -> tuple[bool, Any]:
    return pickle.loads(path.read_bytes()) if path.exists() else (False, None)


def _work(
    rank: int,
    num_processes: int,
    folder: Path,
    backend: str,
    may_fail: bool,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    # Imported here: the test process itself needs none of it.
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # Gathering whole tensors for comparison is not what is tested here.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    try:
        dist.init_process_group(
            backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_processes
        )
        result = (True, function(*args))
        # A peer may be gone where it may fail: what this process found counts all the same.
        with suppress(RuntimeError) if may_fail else nullcontext():
            dist.barrier()
    except BaseException:
        result = (False, traceback.format_exc())
    partial = folder / f"{rank}.partial"
    partial.write_bytes(pickle.dumps(result))
    partial.rename(folder / f"{rank}.pkl")
    if not result[0]:
        os._exit(1)
    dist.destroy_process_group()
