"""What attention sends between processes that divide a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from groups import shares_meshes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from weighted import validation_rows
from worlds import Case, make_engine

from triax.models.families import model_config
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig
from triax.parallel.context import sequence
from triax.parallel.context.attention import divide_attention
from triax.parallel.context.methods import ContextMethod
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh
from triax.parallel.next_token import next_log_probs

NUM_ROWS, NUM_TOKENS = 2, 16
"""Of each process."""


class Sent(NamedTuple):
    """Bytes that left this process, and in how many messages to each receiver."""

    forward: int
    backward: int
    messages: dict[str, int]


class _Exchanges(TorchDispatchMode):
    """Counts the bytes of `all_to_all_single`."""

    def __init__(self, count: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname == "all_to_all_single":
            size = dist.get_world_size()
            self._count("all_to_all", args[0].nbytes * (size - 1) // size)
        return func(*args, **(kwargs or {}))


@contextmanager
def _counted(count: Any) -> Iterator[None]:
    """While it is entered, each message's bytes are told."""
    size = dist.get_world_size()
    gather, scatter = sequence._all_gather, sequence._reduce_scatter
    send = dist.batch_isend_irecv

    def all_gather(_whole: Tensor, part: Tensor, **rest: Any) -> Any:
        count("all_gather", part.nbytes * (size - 1))
        return gather(_whole, part, **rest)

    def reduce_scatter(part: Tensor, whole: Tensor, **rest: Any) -> Any:
        count("reduce_scatter", whole.nbytes * (size - 1) // size)
        return scatter(part, whole, **rest)

    def exchange(operations: list[Any]) -> Any:
        for operation in operations:
            if operation.op is dist.isend:
                count("send", operation.tensor.nbytes)
        return send(operations)

    with (
        mock.patch.object(sequence, "_all_gather", all_gather),
        mock.patch.object(sequence, "_reduce_scatter", reduce_scatter),
        mock.patch.object(dist, "batch_isend_irecv", exchange),
        _Exchanges(count),
    ):
        yield


def written_next(cases: list[Case], lengths: Sequence[int]) -> list[dict[int, Tensor]]:
    """The distributions after so many tokens of the validation's sequences, by length."""
    return [_written_next(case, lengths) for case in cases]


@shares_meshes
def _written_next(case: Case, lengths: Sequence[int]) -> dict[int, Tensor]:
    parallel = ParallelConfig(**case.parallel)
    mesh = build_mesh(Layout.of(parallel, dist.get_world_size()), "cpu")
    engine, rows = make_engine(case), validation_rows(case)
    batches = rows.split(case.micro_batch_size)
    return {n: torch.cat(next_log_probs(engine, mesh, batches, n)) for n in lengths}


def sent_by_attention(model: dict[str, Any], methods: list[ContextMethod]) -> list[Sent]:
    """What one layer sends for one micro-batch, without documents, by method."""
    return [_sent(model, method) for method in methods]


def _sent(model: dict[str, Any], method: ContextMethod) -> Sent:
    size = dist.get_world_size()
    mesh = build_mesh(Layout.of(ParallelConfig(context=size), size), "cpu")["context"]
    config = model_config(**model)
    with torch.device("meta"):
        transformer = Transformer(config)
    divide_attention(transformer, mesh, method, tensor=1)
    layer = config.architecture().layers[0].attention
    q, k, v = (
        torch.randn(NUM_ROWS, heads, NUM_TOKENS, layer.head_dim, requires_grad=True)
        for heads in (layer.num_heads, layer.num_query_groups, layer.num_query_groups)
    )
    totals, messages = [0, 0], Counter[str]()
    is_backward = 0

    def count(name: str, num_bytes: int) -> None:
        totals[is_backward] += num_bytes
        messages[name] += 1

    attend = next(iter(transformer.blocks.values())).attention.attend  # type: ignore[union-attr]
    with _counted(count):
        mask = transformer.make_mask(None, NUM_TOKENS, None, q.device)
        mixed = attend(q, k, v, mask)  # type: ignore[operator]
        is_backward = 1
        mixed.sum().backward()
    return Sent(totals[0], totals[1], dict(messages))
