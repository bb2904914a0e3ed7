"""Who sees a GPU: tests marked `gpu`, and nobody else.

The others expect a CPU's figures, and many start more processes than a machine has GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Asking for a GPU the usual way would initialise CUDA, before the variable below is set and in a
# fork server, whose children then can't use one.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu() -> bool:
    import torch  # late: it takes seconds, and `pytest --help` reads this file too

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Not a fixture: those of a module or a session come before any of a function."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("gpu") is None:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return (yield)
