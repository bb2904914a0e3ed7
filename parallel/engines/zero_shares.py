"""Where DeepSpeed's ZeRO optimizers keep this process's share of weights, gradients and moments.

They keep them in flat fp32 buffers: one a parameter group, of which a share is a range. Stages 1
and 2 divide the whole group, so a process may have no share of a parameter; stage 3 divides every
parameter for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn


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
        """The flat fp32 weights, which are what the inner optimizer's state is keyed by."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Reduced gradients of the shares, after the last micro-batch; live, 1-D."""

    def step_buffer(self, number: int) -> None:
        """Let the inner optimizer update one buffer from its `grad`."""

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

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, share in self.shares.items():
            parameter: Any = self._parameters[name]
            mapping = parameter._hp_mapping
            gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
            if self._is_bf16:  # it holds the gradients of all ranks' shares
                gradient = gradient[share.first : share.first + share.length]
            yield name, gradient

    def step_buffer(self, number: int) -> None:
        if self._is_bf16:
            groups = self._optimizer.optimizer.param_groups
            kept = [group["params"] for group in groups]
            for i, group in enumerate(groups):
                group["params"] = kept[i] if i == number else []
            self._optimizer.optimizer.step()
            for group, parameters in zip(groups, kept, strict=True):
                group["params"] = parameters
        else:
            self._optimizer._optimizer_step(number)

    def drop_gradients(self) -> None:
        # After gradients that are not finite, DeepSpeed forgets to with offload: the next step's
        # would be added to them, and no step would be finite any more.
        for kept in ("averaged_gradients", "all_grad_tensors"):
            for number in getattr(self._optimizer, kept, ()):
                getattr(self._optimizer, kept)[number] = None

    def publish(self) -> None:
        self._optimizer.update_lp_params()


class _EachParameter:
    """Stage 3."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self.shares = {}
        for name, parameter in parameters.items():
            buffer, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            first = size * optimizer._get_param_partition_rank(parameter)
            length = min(size, parameter.ds_numel - first)  # type: ignore[attr-defined]
            if length > 0:  # the last ranks' shares of a small parameter are padding
                self.shares[name] = Share(buffer, start, first, length)

    def buffers(self) -> list[Tensor]:
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, share in self.shares.items():
            gradient, _ = self._optimizer._get_fp32_grad_state_partition(
                self._parameters[name], release_swap_buffers=True
            )
            yield name, gradient.flatten()[: share.length]

    def step_buffer(self, number: int) -> None:
        self._optimizer._optimizer_step(number)

    def drop_gradients(self) -> None:
        """Nothing is left: the first micro-batch's gradients overwrite."""

    @torch.no_grad()
    def publish(self) -> None:
        self._optimizer._partition_all_parameters()
        for number in range(len(self._optimizer.fp16_groups)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(number)
        persistent = self._optimizer.persistent_parameters
        if persistent:  # small ones, which stay gathered
            persistent[0].all_gather(persistent)
