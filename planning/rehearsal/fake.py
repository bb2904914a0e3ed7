"""A process of a job that isn't there: tensors without elements, and a process group that sends
nothing.

The code that runs is the real one. torch's fake tensors (`FakeTensorMode`) have shapes, dtypes and
storages of a size, and its fake process group takes every message and answers at once. What is
known without the model stays real: ranks of a mesh, tokens of a batch, numbers from Python. So what
depends on them (which stage, which shard, how many targets) is decided as in a real run.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from triax.models.layers.blockwise import AttendedGradients
from triax.parallel import experts
from triax.parallel.config import ParallelConfig
from triax.parallel.context import gather, ring
from triax.parallel.dtypes import DTYPES

_MAX_REAL = 1 << 20
"""Elements that a tensor of whole numbers may have to be real."""


_swap = torch.utils.swap_tensors


@contextmanager
def fake_world(rank: int, world_size: int) -> Iterator[None]:
    """Be one process of so many; `torch.distributed` says so while it is entered.

    An engine's libraries must have been imported before.

    Raises:
        RuntimeError: this process is one of a real job already.
    """
    if dist.is_initialized():
        raise RuntimeError("a process of a real job can't rehearse another")
    _forget_meshes()
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        with (
            mock.patch.object(dist, "new_group", _new_fake_group),
            mock.patch.object(torch.utils, "swap_tensors", _swap_unless_same),
            mock.patch.object(experts, "rows_by_process", _even_rows),
            _peers_agree(),
            _no_tiles(),
        ):
            yield
    finally:
        dist.destroy_process_group()


def _forget_meshes() -> None:
    """DTensor remembers how it has divided results, with the groups of a job that is over."""
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    clear = getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", None)  # since torch 2.12
    if clear is not None:
        clear()


@contextmanager
def _no_tiles() -> Iterator[None]:
    """Attention that comes in parts computes none of them: a part is thousands of operations, and
    only what goes in and comes out has a size that matters."""

    def attend(*_inputs: Any) -> None:
        pass

    def differentiate(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> AttendedGradients:
        return AttendedGradients(*(torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)))

    with (
        mock.patch.multiple(ring, attend_tiles=attend, differentiate_tiles=differentiate),
        mock.patch.multiple(gather, attend_tiles=attend, differentiate_tiles=differentiate),
    ):
        yield


@contextmanager
def _peers_agree() -> Iterator[None]:
    """DeepSpeed's ZeRO-3 asks rank 0 whether it knows the same modules: it does, and says so."""
    utils = sys.modules.get("deepspeed.runtime.zero.utils")
    if utils is None:
        yield
        return
    ask_length, ask_values = utils.assert_lst_len_same_as_other_ranks, utils.get_lst_from_rank0

    def hear_our_length(values: list[int]) -> None:
        with suppress(RuntimeError):
            ask_length(values)

    def hear_our_values(values: list[int]) -> list[int]:
        ask_values(values)
        return values

    with (
        mock.patch.object(utils, "assert_lst_len_same_as_other_ranks", hear_our_length),
        mock.patch.object(utils, "get_lst_from_rank0", hear_our_values),
    ):
        yield


def _new_fake_group(ranks: Sequence[int] | None = None, *_args: Any, **_options: Any) -> Any:
    """Whatever backend a library asks for."""
    return dist.distributed_c10d.new_group(ranks, backend="fake")


def _even_rows(
    counts_PL: Tensor, _arriving_PL: Tensor, num_rows: int
) -> tuple[list[int], list[int]]:
    """Which experts tokens choose isn't known without a model: all equally often."""
    size = len(counts_PL)
    rows = [num_rows // size + (place < num_rows % size) for place in range(size)]
    return rows, rows


def _swap_unless_same(parameter: Tensor, other: Tensor) -> None:
    """`torch.utils.swap_tensors`, which refuses fake tensors even where a `Module.to` has changed
    nothing."""
    if parameter.untyped_storage()._cdata != other.untyped_storage()._cdata:
        _swap(parameter, other)  # type: ignore[no-untyped-call]


class FakeTensors(TorchDispatchMode):
    """While it is entered, what is newly made on a device has no elements.

    Reading a number from such a tensor gives 0: an update isn't skipped, nothing has overflowed.

    Args:
        sent: what pipeline stages send each other, from `between_stages`.
    """

    def __init__(self, sent: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._sent = sent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_wrapper(kind) for kind in types):
            return NotImplemented  # it comes again, with the tensors inside
        kwargs = kwargs or {}
        if infers_shapes():
            return func(*args, **kwargs)
        inputs = list(tensors_in((*args, *kwargs.values())))
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in inputs)
        if is_fake and func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if inputs[0].is_floating_point() else 0
        if is_fake or _makes_elements(func, inputs, kwargs) or _broadcasts(inputs):
            with self._mode:
                result = func(*args, **kwargs)
            if is_fake or not _is_of_numbers(result):
                return result
        if func is torch.ops.c10d.recv_.default:
            self._answer(inputs)
        return func(*args, **kwargs)

    def _answer(self, received: Sequence[Tensor]) -> None:
        """Write what a peer would have sent into whole numbers that are received.

        A single one is a vote of torch's pipeline stages, whether all know their shapes: 1, as ours
        do. Several are DeepSpeed's word of what it sends next: that it is a tensor (0), the number
        of its dtype, and its shape (`PipelineEngine._send_tensor_meta`).
        """
        for tensor in received:
            tensor.fill_(1)
            if tensor.numel() > 1:
                numbers = sys.modules["deepspeed.runtime.pipe.engine"].PipelineEngine.DTYPE_TO_ID
                word = (0, numbers[self._sent.dtype], self._sent.ndim, *self._sent.shape)
                tensor[: len(word)] = torch.tensor(word, dtype=tensor.dtype)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results, in lists of lists too. It is called
    for every operation, and torch's own walk through any tree takes three times as long."""
    for value in values if isinstance(values, list | tuple) else (values,):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def infers_shapes() -> bool:
    """Whether torch looks for the shapes of an operation's results, with fake tensors of its own,
    as DTensor does: nothing of it is the model's."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def is_wrapper(kind: type) -> bool:
    """Whether a tensor's class has other tensors inside, as DTensor, and calls again with these."""
    return hasattr(kind, "__tensor_flatten__")


def between_stages(
    hidden_size: int, parallel: ParallelConfig, compute: str, micro_batch_size: int, seq_len: int
) -> Tensor:
    """What one pipeline stage sends to the next for a micro-batch, on the meta device."""
    num_tokens = seq_len // parallel.tensor if parallel.sequence_parallel else seq_len
    shape = (micro_batch_size, num_tokens, hidden_size)
    return torch.empty(shape, dtype=DTYPES[compute], device="meta")


def _makes_elements(func: Any, inputs: Sequence[Tensor], kwargs: dict[str, Any]) -> bool:
    """Whether an operation on real tensors makes a new one: out of nothing, or out of a meta one.

    What is computed from real tensors (ranks, tokens) stays real.
    """
    if not any(argument.name == "device" for argument in func._schema.arguments):
        return False
    device = kwargs.get("device")
    if device is None:
        return not inputs
    return torch.device(device).type != "meta" and all(tensor.is_meta for tensor in inputs)


def _broadcasts(inputs: Sequence[Tensor]) -> bool:
    """Whether real tensors may make a large one together, as positions make a mask."""
    if len(inputs) < 2:
        return False
    shapes = [tuple(reversed(tensor.shape)) for tensor in inputs]
    largest = itertools.zip_longest(*shapes, fillvalue=1)
    return math.prod(map(max, largest)) > _MAX_REAL


def _is_of_numbers(result: Any) -> bool:
    """Whether a new tensor may be real: whole numbers, which say where things are, and not many."""
    return (
        isinstance(result, Tensor)
        and not result.is_floating_point()
        and result.numel() <= _MAX_REAL
    )
