"""Tiled attention as single operations of torch's: compilers and selective checkpointing take each
for one kernel, whatever it does inside, messages too.

Shape letters: B batch, T queries, S keys, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triax.models.layers.blockwise import (
    Attended,
    AttendedGradients,
    Sight,
    attend_tiles,
    differentiate_tiles,
    nothing_attended,
)

NAMESPACE = "triax"

_FORWARD = "(Tensor q, Tensor k, Tensor v, Tensor? firsts, int? window, str group)"
_BACKWARD = f"(Tensor grad, Tensor mixed, Tensor log_sum, {_FORWARD[1:]}"

Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None, int | None, str], Attended]
"""Attention of q (B, H, T, K) to k and v (B, G, S, K). Then come, as in `Sight`, the places where
documents begin, a window, and the name of the process group that the rows are divided over."""
Backward = Callable[[Tensor, Attended, Tensor, Tensor, Tensor, Any, Any, str], AttendedGradients]
"""Likewise; before them the mixed values' gradient, and what forward gave."""


class AttentionOp:
    """An operation `triax::NAME`, and its gradient `triax::NAME_backward`.

    Attributes:
        insides: by operation, as torch dispatches it, the function that it calls: for those who
            must see what happens within.
    """

    def __init__(self, name: str, forward: Forward, backward: Backward) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            mixed, log_sum = forward(q, k, v, *rest)
            return mixed.to(q.dtype), log_sum

        def differentiate(
            grad: Tensor, mixed: Tensor, log_sum: Tensor, *inputs: Any
        ) -> tuple[Tensor, ...]:
            found = backward(grad, Attended(mixed, log_sum), *inputs)
            # Not views of one message, which an operation must not return.
            pairs = zip(inputs[:3], found, strict=True)
            return tuple(torch.empty_like(like).copy_(x) for like, x in pairs)

        self._op = torch.library.custom_op(
            f"{NAMESPACE}::{name}",
            attend,
            mutates_args=(),
            schema=f"{_FORWARD} -> (Tensor, Tensor)",
        )
        self._op.register_fake(_like_queries)
        self._backward_op = torch.library.custom_op(
            f"{NAMESPACE}::{name}_backward", differentiate, mutates_args=(),
            schema=f"{_BACKWARD} -> (Tensor, Tensor, Tensor)",
        )  # fmt: skip
        self._backward_op.register_fake(_like_inputs)
        self._op.register_autograd(self._differentiate, setup_context=_save)
        self.insides: dict[Any, Callable[..., Any]] = {
            self._op._opoverload: attend,
            self._backward_op._opoverload: differentiate,
        }

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, firsts: Tensor | None, window: int | None, group: str
    ) -> Tensor:
        """The mixed values (B, H, T, K) in the queries' dtype."""
        mixed: Tensor = self._op(q, k, v, firsts, window, group)[0]
        return mixed

    def _differentiate(self, ctx: Any, grad: Tensor, _of_log_sum: Tensor) -> tuple[Any, ...]:
        q, k, v, firsts, mixed, log_sum = ctx.saved_tensors
        found = self._backward_op(grad, mixed, log_sum, q, k, v, firsts, ctx.window, ctx.group)
        return (*found, None, None, None)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, firsts, ctx.window, ctx.group = inputs
    ctx.save_for_backward(q, k, v, firsts, *output)


def _like_queries(q: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(q[..., 0], dtype=torch.float32)


def _like_inputs(
    _grad: Tensor, _mixed: Tensor, _log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: Any
) -> tuple[Tensor, ...]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def whole_row(q_BHTK: Tensor, firsts_BT: Tensor | None, window: int | None) -> Sight:
    """Of rows whose keys are all here."""
    places = (range(q_BHTK.shape[2]),)
    return Sight(places, places, firsts_BT, window)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, firsts: Tensor | None, window: int | None, _group: str
) -> Attended:
    attended = nothing_attended(q)
    attend_tiles(q, k, v, whole_row(q, firsts, window), attended)
    return attended


def _differentiate(
    grad: Tensor, attended: Attended, q: Tensor, k: Tensor, v: Tensor,
    firsts: Tensor | None, window: int | None, _group: str,
) -> AttendedGradients:  # fmt: skip
    return differentiate_tiles(grad, q, k, v, attended, whole_row(q, firsts, window))


attend_rows = AttentionOp("attend_rows", _attend, _differentiate)
"""Of rows that are whole on this process; its group is ""."""
