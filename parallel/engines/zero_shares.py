"""Where DeepSpeed's ZeRO optimizers keep this process's share of weights, gradients and moments.

They keep them in flat fp32 buffers: one a parameter group, of which a share is a range. Stages 1
and 2 divide the whole group, so a process may have no share of a parameter; stage 3 divides every
parameter for itself, and large groups into several buffers, which may lie on a drive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn

from triax.parallel.engines.nvme import mapped, settle


class Share(NamedTuple):
    """A contiguous range of one parameter."""

    buffer: int
    """Which flat buffer it is in."""
    start: int
    """Where it begins in the buffer."""
    first: int
    """Where it begins in the flattened parameter."""
    length: int


class ZeroShares(Protocol):
    """What the engine needs of a ZeRO optimizer."""

    shares: dict[str, Share]
    """By parameter name; those that this process has none of are missing."""

    def buffers(self) -> list[Tensor]:
        """The flat fp32 weights; live."""

    def states(self) -> list[dict[str, Tensor]]:
        """The inner optimizer's state of each buffer: 1-D moments and scalars; live."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Reduced gradients of the shares, after the last micro-batch; 1-D."""

    def make_states(self) -> None:
        """Let the inner optimizer, at a learning rate of zero, make its state: all of it zero."""

    def drop_gradients(self) -> None:
        """Forget the gradients of a step that the inner optimizer was not let to take."""

    def publish(self) -> None:
        """Bring the weights that the model computes with in line with the buffers."""


def shares_of(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> ZeroShares:
    """The shares of DeepSpeed's optimizer, whichever of its classes that is.

    Args:
        optimizer: `DeepSpeedEngine.optimizer`.
        parameters: the optimised ones by name.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _EachParameter(optimizer, parameters)
    return _WholeGroup(optimizer, parameters)


class _WholeGroup:
    """Stages 1 and 2, and the optimizer that DeepSpeed takes for bf16 at stage 1."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self.shares = {}
        for name, parameter in parameters.items():
            mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                place = mapping.hp_fragment_address
                first = mapping.lp_fragment_address.start
                self.shares[name] = Share(
                    mapping.param_group_index, place.start, first, place.numel
                )

    @property
    def _is_bf16(self) -> bool:
        return isinstance(self._optimizer, BF16_Optimizer)

    def buffers(self) -> list[Tensor]:
        if self._is_bf16:
            return list(self._optimizer.fp32_groups_flat_partition)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def states(self) -> list[dict[str, Tensor]]:
        return [self._optimizer.optimizer.state[buffer] for buffer in self.buffers()]

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, share in self.shares.items():
            parameter: Any = self._parameters[name]
            mapping = parameter._hp_mapping
            gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
            if self._is_bf16:  # it holds the gradients of all ranks' shares
                gradient = gradient[share.first : share.first + share.length]
            yield name, gradient

    def make_states(self) -> None:
        inner = self._optimizer.optimizer
        _make_states(inner, self.buffers(), inner.step)

    def drop_gradients(self) -> None:
        # After gradients that are not finite, DeepSpeed forgets to with offload: the next step's
        # would be added to them, and no step would be finite any more.
        for kept in ("averaged_gradients", "all_grad_tensors"):
            for number in getattr(self._optimizer, kept, ()):
                getattr(self._optimizer, kept)[number] = None

    def publish(self) -> None:
        self._optimizer.update_lp_params()


class _EachParameter:
    """Stage 3.

    With `offload = "nvme"` DeepSpeed keeps each buffer of a megabyte or more, and its moments, in
    files between the updates; here they are mapped files.
    """

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self.shares = {}
        self._gradient_starts = dict(_starts(optimizer.fp16_groups))
        self._parameters = parameters
        for name, parameter in parameters.items():
            buffer, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            first = size * optimizer._get_param_partition_rank(parameter)
            length = min(size, parameter.ds_numel - first)  # type: ignore[attr-defined]
            if length > 0:  # the last ranks' shares of a small parameter are padding
                self.shares[name] = Share(buffer, start, first, length)

    def buffers(self) -> list[Tensor]:
        return [
            self._live(number, buffer)
            for number, buffer in enumerate(self._optimizer.fp32_partitioned_groups_flat)
        ]

    def states(self) -> list[dict[str, Tensor]]:
        return [
            {
                key: self._live(number, value)
                for key, value in self._optimizer.optimizer.state[buffer].items()
            }
            for number, buffer in enumerate(self._optimizer.fp32_partitioned_groups_flat)
        ]

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        # Not where the update will find them: with offload these are copies, perhaps on a drive.
        gradients = self._optimizer.grad_partitions_flat_buffer
        for name, share in self.shares.items():
            start = self._gradient_starts[id(self._parameters[name])]
            yield name, gradients[start : start + share.length]

    def make_states(self) -> None:
        optimizer = self._optimizer
        for number, buffer in enumerate(optimizer.fp32_partitioned_groups_flat):
            with self._in_memory(number, keep=True):
                _make_states(
                    optimizer.optimizer, [buffer], partial(optimizer._optimizer_step, number)
                )

    def drop_gradients(self) -> None:
        # In memory nothing is left: the first micro-batch's gradients overwrite. For those that
        # are not finite DeepSpeed leaves before it has waited for their files.
        if self._optimizer.swap_optimizer:
            self._optimizer.optimizer_swapper.flush_gradients()

    @torch.no_grad()
    def publish(self) -> None:
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for number in range(len(optimizer.fp16_groups)):
            with self._in_memory(number, keep=False):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
        persistent = optimizer.persistent_parameters
        if persistent:  # small ones, which stay gathered
            persistent[0].all_gather(persistent)

    def _files(self, number: int) -> Sequence[Any]:
        """DeepSpeed's records of the files of a buffer and its moments; none if it is in memory."""
        if not self._optimizer._swappable_optimizer_subgroup(number):
            return ()
        buffer = self._optimizer.fp32_partitioned_groups_flat[number]
        files: Sequence[Any] = self._optimizer.optimizer_swapper.swap_params_info[
            buffer.ds_id
        ].tensors
        return files

    def _live(self, number: int, tensor: Tensor) -> Tensor:
        """The buffer or one of its moments, wherever it is; the step count is in memory always."""
        for file in self._files(number):
            if file.compute_tensor is tensor:
                num_elements = int(self._optimizer.fp16_partitioned_groups_flat_numel[number])
                return mapped(file.swap_path, num_elements)
        return tensor

    @contextmanager
    def _in_memory(self, number: int, *, keep: bool) -> Iterator[None]:
        """Have DeepSpeed's own tensors of a buffer filled from their files.

        Args:
            number: the buffer's.
            keep: write them back after.
        """
        files = self._files(number)
        for file in files:
            settle(file.swap_path)
        if files:
            self._optimizer._optimizer_states_and_gradient_swap_in(number)
        yield
        if files and keep:
            self._optimizer._optimizer_states_and_gradient_swap_out(number)
        elif files:
            self._optimizer._release_swap_buffers(number)


def _starts(groups: Sequence[Sequence[Any]]) -> Iterator[tuple[int, int]]:
    """Where each parameter's gradient begins among those of all, by the parameter's `id`."""
    start = 0
    for parameter in itertools.chain.from_iterable(groups):
        yield id(parameter), start
        start += parameter.partition_numel()


def _make_states(inner: Any, buffers: Sequence[Tensor], step: Callable[[], object]) -> None:
    """Take a step of the inner optimizer that changes no weight, and set back what it counted."""
    for group in inner.param_groups:
        group["lr"] = 0.0
    kept = [buffer.grad for buffer in buffers]
    for buffer in buffers:
        buffer.grad = torch.zeros_like(buffer)
    step()
    for buffer, gradient in zip(buffers, kept, strict=True):
        buffer.grad = gradient
        for value in inner.state[buffer].values():
            value.zero_()
