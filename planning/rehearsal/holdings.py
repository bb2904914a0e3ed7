"""What an engine holds, by what it is for: the names of what a recorder has seen come and go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from triax.parallel.flat_shards import local_parts, local_tensor
from triax.parallel.schedule import Part as StagePart
from triax.parallel.zero import parameter_groups, sharded_modules
from triax.planning.rehearsal.memory import MemoryLog, Part


class Inspected(Protocol):
    """What both engines show of themselves."""

    @property
    def parts(self) -> Sequence[StagePart]: ...
    def state(self) -> Mapping[str, Tensor]: ...
    def local_gradients(self) -> Sequence[Tensor]: ...


def mark_built(engine: Inspected, memory: MemoryLog) -> None:
    """Name what there is before the first step."""
    for name, tensor in engine.state().items():
        memory.mark(local_parts(tensor), _part_of(name))
    for stage in engine.parts:
        memory.mark(map(local_tensor, stage.module.parameters()), Part.WEIGHTS)
    for held in memory.alive():
        held.mark(Part.BUFFERS)


def mark_gradients(engine: Inspected, memory: MemoryLog) -> None:
    """Name the gradients, between the passes and the update."""
    memory.mark(engine.local_gradients(), Part.GRADIENTS)


def mark_whole(module: nn.Module, memory: MemoryLog) -> None:
    """Name what FSDP2 holds of whole weights just now."""
    for parameter in _sharded_parameters(module):
        memory.mark(parameter.all_gather_outputs, Part.GATHERED)
        whole = getattr(parameter, "_unsharded_param", None)
        gradients = (parameter.unsharded_accumulated_grad, None if whole is None else whole.grad)
        memory.mark((local_tensor(g) for g in gradients if g is not None), Part.UNREDUCED)


def _part_of(name: str) -> Part:
    """By a name of `Engine.state()`."""
    if name.startswith("model."):
        return Part.MAIN_PARAMS
    return Part.MOMENTS if "exp_avg" in name.rpartition(".")[2] else Part.BUFFERS


def _sharded_parameters(module: nn.Module) -> Iterator[Any]:
    for sharded in sharded_modules(module):
        for group in parameter_groups(sharded._get_fsdp_state()):
            yield from group.fsdp_params
