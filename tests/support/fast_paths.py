"""What is fast on a GPU, run there or, as far as it goes, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from watched import NoWaiting
from worlds import Case, Rows, make_context, make_engine, micro_batches

from triax.training.step import train_step

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
EACH_DEVICE = pytest.mark.parametrize("device", ["cpu", CUDA])
ON_GPU = pytest.mark.parametrize("device", [CUDA])
BACKEND = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""For `run_fleet`, by device."""


def error(found: Tensor | None, expected: Tensor) -> float:
    """Relative error by norm; NaN where there is none to speak of."""
    assert found is not None
    difference = found.detach().double().cpu() - expected.detach().double().cpu()
    return float(difference.norm() / expected.detach().double().cpu().norm())


class Operations(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits(device: str) -> Iterator[None]:
    """Raise where the host would wait for the device."""
    if device == "cpu":
        with NoWaiting():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steady_steps(case: Case, num_warm: int = 3, num_steps: int = 3) -> list[float]:
    """The losses of steps in which, after the first few, nothing may wait."""
    context = make_context(case, make_engine(case))
    batches = [micro_batches(case, step) for step in range(num_warm + num_steps)]
    if case.device == "cuda":
        batches = [[_pinned(rows) for rows in step] for step in batches]
    results = [train_step(context, rows, lr=1e-3) for rows in batches[:num_warm]]
    with nothing_waits(case.device):
        results += [train_step(context, rows, lr=1e-3) for rows in batches[num_warm:]]
    return [result.loss.item() for result in results]


def _pinned(rows: Rows) -> Rows:
    ids = rows.document_ids_BT
    return Rows(
        rows.tokens_BT.pin_memory(),
        rows.targets_BT.pin_memory(),
        None if ids is None else ids.pin_memory(),
    )
