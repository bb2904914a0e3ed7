"""The same step twice on each process: among real peers, and rehearsed without them; and the bytes
that the real engine holds, to hold the planner against."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from groups import shares_meshes
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from worlds import Case, engine_class, make_context, make_engine, micro_batches

from triax.models.families import model_config
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.flat_shards import local_parts, local_tensor
from triax.planning.rehearsal.fake import FakeTensors, between_stages, fake_world
from triax.planning.rehearsal.recording import Recording, record_step
from triax.planning.setup import Setup
from triax.planning.states import States
from triax.training.config import BatchConfig, OptimizerConfig


class Both(NamedTuple):
    """What one process did."""

    real: Recording
    rehearsed: Recording | None
    """None where it wasn't to be rehearsed."""
    states: States
    """What the real engine held between the passes and the update."""


def both(cases: Sequence[Case], ranks: Collection[int]) -> list[Both]:
    """Real steps of all cases, then the rehearsals of some ranks; to be called on all processes of
    a fleet."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    real = [_real(case) for case in cases]
    dist.destroy_process_group()
    rehearsed = [rehearse(case, rank, world_size) if rank in ranks else None for case in cases]
    # The fleet wants to meet and to leave a group.
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    return [
        Both(recording, again, states)
        for (recording, states), again in zip(real, rehearsed, strict=True)
    ]


def rehearse(case: Case, rank: int, world_size: int) -> Recording:
    """A step of the case's on a process of a world that isn't there."""
    setup = setup_of(case, world_size)
    sent = between_stages(
        setup.model.hidden_size,
        setup.parallel,
        setup.precision.compute,
        case.micro_batch_size,
        case.seq_len,
    )
    engine_class(case)
    with fake_world(rank, world_size):
        batches = micro_batches(case, 0)
        with FakeTensors(sent):
            recording = record_step(lambda: make_context(case, make_engine(case)), batches, 1e-3)
    _forget_globals()
    return recording


def setup_of(case: Case, world_size: int) -> Setup:
    """The case as the planner takes it."""
    return Setup(
        model_config(**case.model),
        ParallelConfig(**case.parallel),
        PrecisionConfig(**case.precision),
        BatchConfig(
            global_batch_size=case.global_batch_size, micro_batch_size=case.micro_batch_size
        ),
        OptimizerConfig(**case.optimizer),
        seq_len=case.seq_len,
        world_size=world_size,
        device="cpu",
        has_documents=True,
    )


@shares_meshes
def _real(case: Case) -> tuple[Recording, States]:
    engines: list[Any] = []

    def build() -> Any:
        engines.append(make_engine(case, _weighing(engine_class(case))))
        return make_context(case, engines[0])

    recording = record_step(build, micro_batches(case, 0), 1e-3)
    _forget_globals()
    return recording, engines[0].states


def _weighing(kind: type) -> type:
    """An engine that weighs what it holds before an update."""

    class WeighingEngine(kind):  # type: ignore[misc]
        def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
            if lr:
                self.states = _weigh(self)
            super().update(lr, gradient_factor, skip)

    return WeighingEngine


def _weigh(engine: Any) -> States:
    """DeepSpeed's flat buffers as a whole, with what pads them; others element by element."""
    size = _bytes_of_storages if hasattr(engine, "_zero") else _bytes_of_elements
    main_params: list[Tensor] = []
    moments: list[Tensor] = []
    for name, tensor in engine.state().items():
        if name.endswith((".router.bias", ".router.load")):
            continue  # state that isn't trained
        if name.startswith("model."):
            main_params += local_parts(tensor)
        elif "exp_avg" in name:
            moments += local_parts(tensor)
    ours = {t.untyped_storage()._cdata for t in main_params}
    weights = [w for w in _weights(engine) if w.untyped_storage()._cdata not in ours]
    return States(size(weights), size(main_params), size(engine.local_gradients()), size(moments))


def _weights(engine: Any) -> list[Tensor]:
    """Those of the modules; at ZeRO-3 DeepSpeed keeps a share beside each."""
    found = []
    for part in engine.parts:
        for weight in part.module.parameters():
            found.append(local_tensor(weight))
            if hasattr(weight, "ds_tensor"):
                found.append(weight.ds_tensor)
    return found


def _bytes_of_elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes_of_storages(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _forget_globals() -> None:
    """What DeepSpeed and megatron-core keep of a job outside of it."""
    if "megatron.core.parallel_state" in sys.modules:
        sys.modules["megatron.core.parallel_state"].destroy_model_parallel()
    if "deepspeed.comm.comm" in sys.modules:
        sys.modules["deepspeed.comm.comm"].__dict__["cdb"] = None
