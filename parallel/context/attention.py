"""How attention reaches the tokens of other processes: what takes the place of the model's own
`make_mask` and `attend`.

Shape letters: B sequences, T tokens of a sequence, N of them on one process, H query heads, G
key/value heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triax.models.layers.attention import attend
from triax.models.layers.attention_op import AttentionOp
from triax.models.layers.block import Block
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.masks import Mask, Reach
from triax.models.layers.transformer import Transformer
from triax.parallel.context.gather import gather_attention
from triax.parallel.context.methods import MethodName, method_of
from triax.parallel.context.ring import ring_attention
from triax.parallel.context.sequence import gathered_parts, in_row_order
from triax.parallel.context.ulysses import to_heads, to_tokens


class ContextAttention(Protocol):
    """A method of context parallelism."""

    def make_mask(
        self,
        document_ids_BN: Tensor | None,
        num_tokens: int,
        sliding_window: int | None,
        device: torch.device,
    ) -> Mask:
        """What `attend` is given: the arguments are those of `attention_mask`, and document ids
        those of `SequenceDivision.cut`."""

    def attend(self, q_BHNK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, mask: Reach) -> Tensor:
        """Mix the values of all tokens for this process's queries; (B, H, N, K)."""


class KeysTravel:
    """Keys and values come to the queries: `gather_attention` or `ring_attention`."""

    def __init__(self, operation: AttentionOp, group: dist.ProcessGroup) -> None:
        self._operation = operation
        self._group = group

    def make_mask(
        self,
        document_ids_BN: Tensor | None,
        _num_tokens: int,
        sliding_window: int | None,
        _device: torch.device,
    ) -> Reach:
        return Reach(document_ids_BN, sliding_window)

    def attend(self, q_BHNK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, mask: Reach) -> Tensor:
        name = self._group.group_name
        return self._operation(q_BHNK, k_BGNK, v_BGNK, mask.firsts_BT, mask.window, name)


class HeadsTravel:
    """Each process has all tokens of some heads, and attends as one process would."""

    def __init__(self, make_mask: Callable[..., Mask], group: dist.ProcessGroup) -> None:
        self._make_mask = make_mask
        self._group = group

    def make_mask(
        self,
        document_ids_BN: Tensor | None,
        num_tokens: int,
        sliding_window: int | None,
        device: torch.device,
    ) -> Mask:
        ids_BT = None
        if document_ids_BN is not None:
            ids_BT = in_row_order(gathered_parts(document_ids_BN, self._group), dim=2)
        return self._make_mask(ids_BT, num_tokens * self._group.size(), sliding_window, device)

    def attend(self, q_BHNK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, mask: Mask) -> Tensor:
        q_BHTK, k_BGTK, v_BGTK = to_heads(q_BHNK, k_BGNK, v_BGNK, self._group)
        return to_tokens(attend(q_BHTK, k_BGTK, v_BGTK, mask), self._group)


def divide_attention(
    model: Transformer, mesh: DeviceMesh, name: MethodName, *, tensor: int
) -> None:
    """Let a model work on a part of each sequence's tokens, in place.

    Args:
        model: the transformer or a pipeline stage of it, with its `make_mask` chosen.
        mesh: the 1-D mesh of the context axis.
        name: how attention reaches the other tokens.
        tensor: processes of the tensor axis, which has divided heads already.
    """
    group = mesh.get_group()
    found: ContextAttention
    match method_of(name, model.description.architecture, mesh.size(), tensor):
        case "gather":
            found = KeysTravel(gather_attention, group)
        case "ring":
            found = KeysTravel(ring_attention, group)
        case "ulysses":
            found = HeadsTravel(model.make_mask, group)
    model.make_mask = found.make_mask

    def over_sequence(x: Tensor) -> Tensor:
        dist.all_reduce(x, group=group)
        return x

    for block in model.blocks.values():
        assert isinstance(block, Block)
        block.attention.attend = found.attend
        if isinstance(block.mlp, MixtureOfExperts):
            block.mlp.router.over_sequence = over_sequence
