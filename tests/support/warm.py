"""The warm parent of all forked processes: it has imported what they need and done nothing else.

A parent that has run a tensor op deadlocks its children, so this is a process of its own. A test
session has one such server, whichever test comes first; what it lacks, each of a thousand forks
would import anew.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

# Asking for a GPU the usual way would leave a fork server whose children can't use one.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

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


def warm_context() -> ForkServerContext:
    """The context whose processes are forks of the server, which is running then."""
    forkserver.set_forkserver_preload(_PRELOAD)
    # It drops modules that it can't import, and finds those beside this one by this path only.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), path)))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return multiprocessing.get_context("forkserver")
