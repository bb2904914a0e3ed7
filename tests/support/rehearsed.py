"""The same step twice on each process: among real peers, and rehearsed without them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from worlds import Case, make_context, make_engine, micro_batches

from triax.planning.rehearsal.fake import FakeTensors, fake_world
from triax.planning.rehearsal.recording import Recording, record_step


class Both(NamedTuple):
    """What one process did."""

    real: Recording
    rehearsed: Recording


def record(case: Case) -> Recording:
    """A step of the case's on this process, with everything recorded."""
    batches = micro_batches(case, 0)
    return record_step(lambda: make_context(case, make_engine(case)), batches, 1e-3)


def rehearse(case: Case, rank: int, world_size: int) -> Recording:
    """The same on a process of a world that isn't there."""
    with fake_world(rank, world_size):
        batches = micro_batches(case, 0)
        with FakeTensors():
            recording = record_step(lambda: make_context(case, make_engine(case)), batches, 1e-3)
    forget_globals()
    return recording


def both(cases: Sequence[Case]) -> list[Both]:
    """Real steps of all cases, then the rehearsals; to be called on all processes of a fleet."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    real = []
    for case in cases:
        real.append(record(case))
        forget_globals()
    dist.destroy_process_group()
    rehearsed = [rehearse(case, rank, world_size) for case in cases]
    # The fleet wants to meet and to leave a group.
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    return [Both(*pair) for pair in zip(real, rehearsed, strict=True)]


def forget_globals() -> None:
    """What DeepSpeed and megatron-core keep of a job outside of it."""
    if "megatron.core.parallel_state" in sys.modules:
        sys.modules["megatron.core.parallel_state"].destroy_model_parallel()
    if "deepspeed.comm.comm" in sys.modules:
        sys.modules["deepspeed.comm.comm"].__dict__["cdb"] = None
