"""What the processes of a fleet do in the deepspeed engine's tests."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from worlds import Case, Run, engine_run, make_context, make_engine, micro_batches

from triax.checkpoint.store import CheckpointStore
from triax.checkpoint.universal import export_universal
from triax.common.errors import UserError
from triax.parallel.flat_shards import local_parts
from triax.training.step.step import train_step

LR = 2e-3


def steps_of(case: Case) -> Tensor:
    """Losses and gradient norms of ten steps, shape (10, 2)."""
    context = make_context(case, make_engine(case))
    rows = []
    for step in range(case.num_steps):
        result = train_step(context, micro_batches(case, step), LR)
        rows.append(torch.stack((result.loss, result.grad_norm)))
    return torch.stack(rows)


def run_with_apex(case: Case, folder: str) -> tuple[Run, int]:
    """`engine_run` with the apex in the folder; and how many norms that computed."""
    sys.path.insert(0, folder)
    run = engine_run(case)
    num_norms: int = importlib.import_module("apex.normalization.fused_layer_norm").num_calls
    return run, num_norms


def run_with_swapping(case: Case, num_elements: int) -> tuple[Run, set[str]]:
    """`engine_run`, of which so many elements are swapped at once; and the files mapped by it."""
    from triax.parallel.engines import deepspeed, nvme, zero_shares

    with (
        mock.patch.object(deepspeed, "_SWAPPED_ELEMENTS", num_elements),
        mock.patch.object(zero_shares, "mapped", wraps=nvme.mapped) as mapped,
    ):
        run = engine_run(case)
    return run, {Path(call.args[0]).name for call in mapped.call_args_list}


def refusal_where_one_has_no_aio(case: Case) -> str:
    """What the engine says if the last process's machine has no libaio."""
    from triax.parallel.engines import nvme

    is_last = dist.get_rank() == dist.get_world_size() - 1
    with mock.patch.object(nvme, "_why_no_aio", lambda: "no libaio" if is_last else None):
        try:
            make_engine(case)
        except UserError as error:
            return str(error)
    return "nothing"


def folders_of_the_living_and_the_dead(place: str) -> tuple[str, str, list[str]]:
    """Names of the folders of a process that was killed and of one that lives, and of those that
    are left when a third has come."""
    from triax.parallel.engines import nvme

    with (
        mock.patch.object(nvme, "_why_no_aio", lambda: None),
        mock.patch.object(nvme, "agreed", lambda step, _group: [step()]),
    ):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            held = nvme.SwapFolder(place)
            os.write(writer, held.path.name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        dead = os.read(reader, 1000).decode()
        assert (Path(place) / dead).is_dir()
        living, third = nvme.SwapFolder(place), nvme.SwapFolder(place)
        names = [path.name for path in Path(place).iterdir() if path.is_dir()]
        assert third.path.name in names
        return dead, living.path.name, names


def aio_problem() -> str | None:
    """Why NVMe offload isn't tested here; None if it can be at once."""
    from torch.utils import cpp_extension

    from triax.parallel.engines.nvme import _why_no_aio

    folder = Path(cpp_extension._get_build_directory("async_io", verbose=False))
    if (folder / "lock").exists() or not (folder / "async_io.so").exists():
        is_compiled = False
    else:  # by this environment, or it would be compiled again
        is_compiled = str(Path(torch.__file__).parent) in (folder / "build.ninja").read_text()
    if not is_compiled:
        return (
            "DeepSpeed's aio is not compiled; minutes take: DS_ACCELERATOR=cpu python -c "
            '"from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()"'
        )
    return _why_no_aio()


def refused_update(case: Case) -> list[str]:
    """What is wrong after refused updates, in words."""
    engine, twin = make_engine(case), make_engine(case)
    context, twins_context = make_context(case, engine), make_context(case, twin)
    train_step(context, micro_batches(case, 0), LR)
    train_step(twins_context, micro_batches(case, 0), LR)
    before = copy_of(engine)
    problems = []
    for weight in (1.0, torch.nan):
        engine.forward_backward(micro_batches(case, 1), torch.tensor(weight))
        engine.update(LR, torch.tensor(0.5), torch.tensor(1.0))
        problems += [f"{name} changed at {weight}" for name in differing(before, copy_of(engine))]
    train_step(context, micro_batches(case, 2), LR)
    train_step(twins_context, micro_batches(case, 2), LR)
    problems += [f"{name} went on otherwise" for name in differing(copy_of(engine), copy_of(twin))]
    problems += [] if differing(before, copy_of(engine)) else ["nothing ever changes"]
    return problems


def copy_of(engine: Any) -> dict[str, list[Tensor]]:
    """This process's part of an engine's state."""
    return {
        name: [part.detach().clone() for part in local_parts(tensor)]
        for name, tensor in engine.state().items()
    }


def differing(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> list[str]:
    """Names whose values are not bitwise the same."""
    assert one.keys() == other.keys()
    return [
        name
        for name in one
        if not all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))
    ]


def evaluation(case: Case) -> list[float]:
    """Evaluation sums before and after a step, and the losses around them."""
    engine = make_engine(case)
    context = make_context(case, engine)
    figures = []
    for step in range(2):
        figures += [figure.item() for figure in engine.evaluate(micro_batches(case, 7))]
        figures.append(train_step(context, micro_batches(case, step), LR).loss.item())
    dist.barrier()
    return figures


def restored_by_deepspeed(case: Case, folder: str) -> list[str]:
    """What DeepSpeed's loader of universal checkpoints gets wrong, by name."""
    engine, other = make_engine(case), make_engine(case)
    for step in range(2):
        train_step(make_context(case, engine), micro_batches(case, step), LR)
    # Its loader wants states that an update has made.
    train_step(make_context(case, other), micro_batches(case, 5), LR)
    store = CheckpointStore(
        Path(folder), keep=1, asynchronous=False, deadline_seconds=60,
        group=dist.new_group(backend="gloo"),
    )  # fmt: skip
    store.save(2, engine.state(), {"config": {"model": case.model}})
    universal = Path(folder) / "universal"
    if dist.get_rank() == 0:
        export_universal(Path(folder) / "step-00000002", universal)
    dist.barrier()
    assert differing(copy_of(engine), copy_of(other))
    optimizer = other._schedule.engine.optimizer
    optimizer._load_universal_checkpoint(str(universal), True, False)
    return differing(copy_of(engine), copy_of(other))
