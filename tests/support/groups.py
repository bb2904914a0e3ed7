"""Process groups of one case after another in the same processes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

P = ParamSpec("P")
T = TypeVar("T")


def leaves_no_groups(
    function: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """Process groups that a case makes end with it, and their threads; DeepSpeed keeps its own.

    A gloo group that nobody uses wakes a hundred times a second: those of thirty cases take a core.
    """

    @functools.wraps(function)
    def run(case: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        before = set(distributed_c10d._world.pg_map)
        result = function(case, *args, **kwargs)
        if case.parallel.get("engine") != "deepspeed":
            dist.barrier()  # no other process waits any more for what this one sent
            _clear_sharding_prop_cache()  # whose entries name the mesh that was first like this one
            gc.collect()
            for group in set(distributed_c10d._world.pg_map) - before:
                dist.destroy_process_group(group)
        return result

    return run
