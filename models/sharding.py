"""How the transformer may be split over tensor-parallel processes, as plain data.

Source of the scheme: Shoeybi et al. 2019 (column, row and vocabulary splits), Korthikanti et al.
2022 (sequence parallelism). The engines read it; the model doesn't know of it.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Role(StrEnum):
    """What a module's weight (rows = output features, columns = input features) is split by."""

    VOCABULARY = "vocabulary"
    """Rows are token ids; the output is a sum over processes."""
    COLUMN = "column"
    """Rows, the output features, are split: input whole, output split."""
    ROW = "row"
    """Columns, the input features, are split: input split, output a sum over processes."""
    HEAD = "head"
    """Rows are token ids; the loss comes together from maxima and sums."""
    SEQUENCE = "sequence"
    """The weight is whole; with sequence parallelism each process has its own tokens."""
    HEADS = "heads"
    """The weight is whole; each process has its own attention heads."""


ROLES: dict[str, Role] = {
    r"embedding": Role.VOCABULARY,
    r"blocks\.\d+\.attention_norm": Role.SEQUENCE,
    r"blocks\.\d+\.attention\.(query|key|value)": Role.COLUMN,
    r"blocks\.\d+\.attention\.(query_norm|key_norm)": Role.HEADS,
    r"blocks\.\d+\.attention\.output": Role.ROW,
    r"blocks\.\d+\.mlp_norm": Role.SEQUENCE,
    r"blocks\.\d+\.mlp\.(gate|up)": Role.COLUMN,
    r"blocks\.\d+\.mlp\.down": Role.ROW,
    r"norm": Role.SEQUENCE,
    r"head": Role.HEAD,
}
"""Module names, as regular expressions, of all modules with a weight of their own."""

WHOLE_SEQUENCE = r"blocks\.\d+\.(attention|mlp)"
"""Modules that need all tokens of a sequence: where sequence parallelism gathers them."""


def role_of(module_name: str) -> Role | None:
    """The role of a module with a weight; None for modules that only hold others."""
    for pattern, role in ROLES.items():
        if re.fullmatch(pattern, module_name):
            return role
    return None


def takes_whole_sequence(module_name: str) -> bool:
    """Whether a module's input must hold all tokens."""
    return re.fullmatch(WHOLE_SEQUENCE, module_name) is not None
