"""A dense model's weights as the beginning of one with experts. Imports no torch.

In sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055) every expert begins as a copy of its
layer's feed-forward layer, and a router as in a new model. Where the weights of a token's experts
sum to 1, the new model computes what the dense one did.
"""

from __future__ import annotations

from collections.abc import Iterator

from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, Parameter, Role, describe

_FRESH = frozenset((Role.ROUTER, Role.BALANCE))
"""Roles of what a dense model has nothing of."""


def is_upcycled(dense: ModelConfig, model: ModelConfig) -> bool:
    """Whether a model has experts and the one that it begins from has none."""
    has, had = (getattr(each, "experts", None) is not None for each in (model, dense))
    return has and not had


def has_shared_experts(model: ModelConfig) -> bool:
    """Whether all tokens go through one layer more: a dense model has nothing to make it of."""
    return any(mixture.shared_hidden_size for mixture in _mixtures(model))


def originals(model: ModelConfig) -> dict[str, str]:
    """By the name of each parameter that begins as a copy: the dense model's name of it."""
    table = describe(model).parameters
    return {name: _original(row) for name, row in table.items() if row.role not in _FRESH}


def dense_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes, by name, of a dense model that a model with experts can begin from."""
    table = describe(model).parameters
    return {
        original: table[name].shape[1:] if table[name].role in EXPERTS else table[name].shape
        for name, original in originals(model).items()
    }


def _mixtures(model: ModelConfig) -> Iterator[Experts]:
    mlps = (layer.feed_forward for layer in describe(model).architecture.layers)
    return (mlp for mlp in mlps if isinstance(mlp, Experts))


def _original(parameter: Parameter) -> str:
    if parameter.role not in EXPERTS:
        return parameter.name
    return f"{parameter.name.replace('.mlp.experts.', '.mlp.')}.weight"
