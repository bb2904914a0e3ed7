"""Device meshes of one case after another in the same processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from unittest import mock

from torch.distributed.device_mesh import init_device_mesh

from triax.parallel import mesh

P = ParamSpec("P")
T = TypeVar("T")

_init_device_mesh = functools.cache(init_device_mesh)


def shares_meshes(case: Callable[P, T]) -> Callable[P, T]:
    """Cases of the same layout in one process have the same meshes, and so the same groups.

    A gloo group that nobody uses wakes a hundred times a second: those of thirty cases take a core.
    """

    @functools.wraps(case)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with mock.patch.object(mesh, "init_device_mesh", _init_device_mesh):
            return case(*args, **kwargs)

    return run
