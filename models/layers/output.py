"""What modules give beside hidden states: named sums, and terms of the objective.

A layer that has something to tell returns a `LayerOutput` in place of a tensor, and declares the
sums in an attribute `sum_shapes`, by which every process knows of them, also one that holds a
pipeline stage without such a layer. What a layer returns is counted once: what activation
checkpointing computes again in the backward pass is dropped.

Shape letters: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class LayerOutput(NamedTuple):
    """Hidden states, and what a layer hands up beside them."""

    x: Tensor
    sums: dict[str, Tensor]
    """Over the tokens of the micro-batch, of the declared shapes; gradients are not followed. The
    processes of the tensor axis hand up the same: a layer that sees a part of the tokens there
    multiplies its part by their number."""
    objective: Tensor | None = None
    """Scalar that is added to the cross entropy's sum with its gradient; None for nothing. Of the
    whole objective: a layer sees to it that its inputs' gradient counts it once, however many
    processes of the tensor axis compute it."""

    @staticmethod
    def of(output: Tensor | LayerOutput) -> LayerOutput:
        """A module's output; most have nothing to tell."""
        return output if isinstance(output, LayerOutput) else LayerOutput(output, {})


class Output(NamedTuple):
    """What the model, or a pipeline stage of it, makes of a micro-batch."""

    x: Tensor
    """The objective, an fp32 scalar: what is differentiated. From a stage without a head the last
    block's output (B, T, D)."""
    sums: dict[str, Tensor]
    """By name, without gradient: `cross_entropy` (fp64, in nats, weighted by the targets' own
    weights only), and what layers handed up, a row a layer. A stage has those of its layers."""
    log_probs_BT: Tensor | None
    """The targets' log-probabilities, fp32 without gradient, 0 where there is no target; None from
    a stage without a head."""


def declared_sums(module: nn.Module) -> dict[str, Shape]:
    """The sums that a module hands up; {} for most."""
    shapes: dict[str, Shape] = getattr(module, "sum_shapes", {})
    return shapes


def shapes_by_layer(blocks: Iterable[nn.Module]) -> dict[str, Shape]:
    """The sums of all layers together: a row a layer, which stays 0 where it hands up nothing."""
    declared = [declared_sums(block) for block in blocks]
    shapes: dict[str, Shape] = {}
    for name, shape in (item for sums in declared for item in sums.items()):
        known = shapes.setdefault(name, (len(declared), *shape))
        assert known[1:] == shape, f"layers hand up {name} in shapes {known[1:]} and {shape}"
    return shapes


class _WithTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor) -> Tensor:
        ctx.like = term
        return x.clone()  # not a view: a backward pass in two halves detaches it in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.ones_like(ctx.like)


def with_term(x: Tensor, term: Tensor) -> Tensor:
    """`x`, whose backward pass also differentiates a scalar, as if it were part of the objective.

    So a term can arise in any pipeline stage, where the objective itself is far away.
    """
    found: Tensor = _WithTerm.apply(x, term)  # type: ignore[no-untyped-call]
    return found


class Collected:
    """What the layers of a pass have handed up."""

    def __init__(self, shapes: dict[str, Shape]) -> None:
        self._shapes = shapes
        self.sums: dict[str, Tensor] = {}
        self.objective: Tensor | None = None

    def take(self, number: int, output: Tensor | LayerOutput) -> Tensor:
        """Keep what a layer told; returns its hidden states."""
        x, sums, objective = LayerOutput.of(output)
        for name, value in sums.items():
            if name not in self.sums:
                self.sums[name] = value.new_zeros(self._shapes[name], dtype=torch.float32)
            self.sums[name][number] = value.detach()
        if objective is not None:
            self.objective = objective if self.objective is None else self.objective + objective
        return x

    def with_objective(self, x: Tensor, weight: Tensor) -> Tensor:
        """`x`, whose backward pass also differentiates what layers added to the objective, times a
        weight."""
        if self.objective is None:
            return x
        term = weight * self.objective
        self.sums["objective"] = term.detach()
        return with_term(x, term)
