"""Processes for tests: forked from a warm parent."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from warm import fork

JOIN_SECONDS = 60


def run_ranks(
    function: Callable[..., Any], num_ranks: int, folder: Path, *args: Any, timeout: float = 30
) -> list[Any]:
    """Call `function(group, *args)` in processes of one gloo group; `group` is None for one.

    Returns what each returned, or its exit code (negative: a signal) if it didn't return.
    """
    rendezvous = folder / f"rendezvous-{len(list(folder.glob('rendezvous-*')))}"
    processes, pipes = [], []
    for rank in range(num_ranks):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        source = sys.modules[function.__module__].__file__
        process = fork(
            _enter, source, function.__name__, sender, rank, num_ranks, rendezvous, timeout, args
        )
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    return [_result(process, pipe) for process, pipe in zip(processes, pipes, strict=True)]


def _result(process: Any, pipe: Connection) -> Any:
    process.join(JOIN_SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError("a rank hangs")
    try:
        return pipe.recv()
    except EOFError:
        return process.exitcode


def _enter(
    source: str,
    name: str,
    sender: Connection,
    rank: int,
    num_ranks: int,
    rendezvous: Path,
    timeout: float,
    args: tuple[Any, ...],
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("worker", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker"] = module
    spec.loader.exec_module(module)
    group = None
    if num_ranks > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout),
        )
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    sender.send(getattr(module, name)(group, *args))
    sender.close()
    if num_ranks > 1:
        dist.destroy_process_group()
