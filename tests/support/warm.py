"""The warm parent of all forked processes: it has imported what they need and done nothing else.

A parent that has run a tensor op deadlocks its children, so this is a process of its own. A test
session has one such server, whichever test comes first; what it lacks, each of a thousand forks
would import anew.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_PRELOAD = [
    "pytest",
    "torch._dynamo",  # what DTensor imports at its first use
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.profiler",
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "triax.launcher.train",
    "triax.parallel.engines.native",
    "worlds",
    "rehearsal",
    "optional",
    "frozen",
]
_GPUS = "CUDA_VISIBLE_DEVICES"


def fork(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    """Start `target(*args)` in a fork of the server; it sees the GPUs that its caller sees."""
    forkserver.set_forkserver_preload(_PRELOAD)
    # It drops modules that it can't import, and finds those beside this one by this path only.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), path)))
    try:
        forkserver.ensure_running()
    finally:
        _set("PYTHONPATH", path)
    process = multiprocessing.get_context("forkserver").Process(
        target=_enter, args=(os.environ.get(_GPUS), target, args), daemon=True
    )
    process.start()
    return process


def _enter(gpus: str | None, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    _set(_GPUS, gpus)
    target(*args)


def _set(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
