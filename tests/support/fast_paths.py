"""What is fast on a GPU, run there or, as far as it goes, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch.utils._python_dispatch import TorchDispatchMode
from watched import NoWaiting
from worlds import Case, make_context, make_engine, micro_batches

from triax.training.step.adamw import update_parts
from triax.training.step.step import train_step

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
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
        batches = [[rows.pin_memory() for rows in step] for step in batches]
    results = [train_step(context, rows, lr=1e-3) for rows in batches[:num_warm]]
    with nothing_waits(case.device):
        results += [train_step(context, rows, lr=1e-3) for rows in batches[num_warm:]]
    return [result.loss.item() for result in results]


def compiled_updates(case: Case, plan: list[int]) -> tuple[list[int], list[str]]:
    """The update as it is compiled, its graphs run as they stand, beside the plain one.

    Args:
        plan: the number of micro-batches of each step; the third is skipped.

    Returns:
        How many graphs there were after each step, and the names of tensors that differ at the end.
    """
    counts: list[int] = []
    num_graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal num_graphs
        num_graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)

    plain, compiled = make_engine(case), make_engine(case)
    compiled.optimizer._is_compiled = True
    compiled.optimizer._update = torch.compile(update_parts, dynamic=False, backend=count)
    for step, number in enumerate(plan):
        for engine in (plain, compiled):
            rows = micro_batches(replace(case, micro_batch_size=8 // number), step)
            engine.forward_backward(rows, torch.tensor(0.02))
            engine.update(1e-3 * (step + 1), torch.ones(()), torch.tensor(float(step == 2)))
        counts.append(num_graphs)
    found, expected = compiled.state(), plain.state()
    return counts, [name for name in expected if not torch.equal(found[name], expected[name])]
