"""What an engine that trains adapters holds, on each of its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from worlds import Case, Run, engine_run, make_engine, micro_batches, whole

from triax.parallel.flat_shards import local_tensor


@dataclass(frozen=True)
class Held:
    """Dtypes, and the last parts of parameters' names."""

    frozen: set[torch.dtype]
    trained: set[torch.dtype]
    names: set[str]
    of_state: set[str]
    of_gradients: set[str]


def held(case: Case) -> Held:
    """After a step's passes."""
    engine = make_engine(case)
    engine.forward_backward(micro_batches(case, 0), torch.tensor(1e-2))
    parameters = [each for part in engine.parts for each in part.module.named_parameters()]
    kept = {n for n, p in parameters if p.grad is not None}
    kept |= {n for n, p in engine.parameters.items() if p.grad is not None}
    frozen = {local_tensor(t).dtype for t in engine.frozen_state().values()}
    return Held(
        frozen,
        {local_tensor(p).dtype for p in engine.parameters.values()},
        {n.rpartition(".")[2] for n in engine.parameters},
        {
            part
            for name in engine.state()
            for part in name.split(".")
            if part in ("lora_a", "lora_b", "weight", "bias")
        },
        {n.rpartition(".")[2] for n in kept},
    )


def frozen_stay(case: Case) -> tuple[Run, bool]:
    """A run, and whether its frozen weights are those that it began with."""
    before = whole(make_engine(case).frozen_state())
    engines: list[Any] = []
    run = engine_run(case, keep=engines.append)
    after = whole(engines[0].frozen_state())
    return run, all(torch.equal(after[name], before[name]) for name in before)
